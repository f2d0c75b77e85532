//! The dispatch of one instruction, control flow, and operations across the lanes of a warp.

use super::lanes::lanes;
use super::{Cta, Flow, Machine, State, Warp};
use crate::inst::*;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_END, function_address};
use crate::report::Class;
use crate::types::Space;

/// Lanes of `mask` name different member sets in `m`.
#[inline]
fn several_sets(w: &Warp, mask: u32, m: R) -> bool {
    let named = w.bank.r32(m);
    let first = named[mask.trailing_zeros() as usize];
    lanes(mask).any(|i| named[i] != first)
}

impl Machine<'_> {
    /// Executes `op` for the lanes `mask` of group `gi`.
    #[inline]
    pub(super) fn exec(&mut self, op: &Op, cta: &mut Cta, wi: usize, pc: u32, mask: u32, gi: usize) -> Flow {
        match *op {
            Op::Alu { .. }
            | Op::Setp { .. }
            | Op::SetpX2 { .. }
            | Op::SetX2 { .. }
            | Op::Set { .. }
            | Op::Testp { .. }
            | Op::Selp { .. }
            | Op::PLogic { .. }
            | Op::Pack { .. }
            | Op::Unpack { .. }
            | Op::Carry { .. }
            | Op::MadCarry { .. } => self.lanewise(op, &mut cta.warps[wi], pc, mask),
            Op::Ld { m, d, more } => self.load(cta, wi, pc, mask, m, d, more),
            Op::St { m, s, more } => self.store(cta, wi, pc, mask, m, s, more),
            Op::Atom { m, op, ty, d, a, b } => self.atomic(cta, wi, pc, mask, m, op, ty, d, a, b),
            Op::CpAsync { dst, doff, src, soff, bytes, src_bytes, ignore } => {
                self.cp_async(cta, wi, pc, mask, (dst, doff), (src, soff), bytes, src_bytes, ignore);
            }
            Op::CpCommit => {
                for lane in lanes(mask) {
                    cta.warps[wi].committed[lane] += 1;
                }
            }
            Op::CpWait { pending } => self.cp_wait(cta, wi, mask, pending),
            Op::Cvta { to_space, space, bits, d, a } => {
                self.cvta(&mut cta.warps[wi], pc, mask, to_space, space, bits, d, a)
            }
            Op::Isspacep { space, p, a } => {
                let w = &mut cta.warps[wi];
                self.check_regs(w, pc, mask, &[a]);
                let mut r = 0;
                for lane in lanes(mask) {
                    let v = w.bank.get(a, lane);
                    let is = match v {
                        SHARED_WINDOW..LOCAL_WINDOW => Space::Shared,
                        LOCAL_WINDOW..PARAM_WINDOW => Space::Local,
                        PARAM_WINDOW..WINDOW_END => Space::Param,
                        _ => {
                            let constant = self.l.mem.find(v).is_some_and(|i| self.l.mem.allocs[i].readonly);
                            if constant { Space::Const } else { Space::Global }
                        }
                    };
                    r |= u32::from(is == space) << lane;
                }
                self.set_pred(w, mask, p, r);
            }
            Op::Bra { target } => return Flow::Jump(target),
            Op::Brx { index, first, n } => {
                let w = &mut cta.warps[wi];
                self.check_regs(w, pc, mask, &[index]);
                for lane in lanes(mask) {
                    let i = w.bank.get(index, lane) as u32;
                    if i >= n {
                        self.find(Class::Mem, "branch index", wi as u32, pc, 1 << lane, None, || {
                            format!("brx.idx with index {i} in a list of {n}")
                        });
                        return Flow::Stop;
                    }
                    self.scatter[lane] = self.l.prog.tables[(first + i) as usize];
                }
                return Flow::Scatter;
            }
            Op::CallIndirect { target, first, n } => {
                let w = &mut cta.warps[wi];
                self.check_regs(w, pc, mask, &[target]);
                let table = &self.l.prog.tables[first as usize..(first + 2 * n) as usize];
                for lane in lanes(mask) {
                    let a = w.bank.get(target, lane);
                    let found = table.chunks_exact(2).find(|e| function_address(e[0] as usize) == a);
                    let Some(entry) = found else {
                        self.find(
                            Class::Mem,
                            "call target",
                            wi as u32,
                            pc,
                            1 << lane,
                            Some((a, None)),
                            || format!("call through {a:#x}, which is no function of the prototype or list"),
                        );
                        return Flow::Stop;
                    };
                    self.scatter[lane] = entry[1];
                }
                return Flow::Scatter;
            }
            Op::Call { target, ret, first_copy, copies } => {
                let w = &mut cta.warps[wi];
                let size = self.l.prog.local_bytes as usize;
                for c in &self.l.prog.copies[first_copy as usize..(first_copy + copies) as usize] {
                    for lane in lanes(mask) {
                        let base = lane * size;
                        let (from, to, n) = (base + c.from as usize, base + c.to as usize, c.bytes as usize);
                        w.local.copy_within(from..from + n, to);
                        for i in 0..n {
                            if w.local_known.all(from + i, 1) {
                                w.local_known.set(to + i, 1);
                            }
                        }
                    }
                }
                if ret.some() {
                    for lane in lanes(mask) {
                        w.bank.set(ret, lane, u64::from(pc + 1));
                    }
                    self.wrote(w, mask, ret);
                }
                return Flow::Jump(target);
            }
            Op::RetFn { ret } => {
                let v = *cta.warps[wi].bank.r32(ret);
                let first = v[mask.trailing_zeros() as usize];
                if lanes(mask).all(|i| v[i] == first) {
                    return Flow::Jump(first);
                }
                self.scatter = v;
                return Flow::Scatter;
            }
            Op::Exit => return Flow::Exit,
            Op::Trap => {
                self.find(Class::Trap, "trap", wi as u32, pc, mask, None, || {
                    "the kernel executed trap".to_string()
                });
                return Flow::Stop;
            }
            Op::Clock { d, hi } => {
                let w = &mut cta.warps[wi];
                let v = if hi { w.executed >> 32 } else { w.executed };
                for lane in lanes(mask) {
                    w.bank.set(d, lane, v);
                }
                self.wrote(w, mask, d);
            }
            Op::Activemask { d } => {
                let w = &mut cta.warps[wi];
                for lane in lanes(mask) {
                    w.bank.set(d, lane, u64::from(mask));
                }
                self.wrote(w, mask, d);
            }
            Op::Bar { .. } => return self.barrier(op, cta, wi, pc, mask, gi),
            Op::WarpSync { mask: m } => {
                let w = &mut cta.warps[wi];
                if several_sets(w, mask, m) {
                    return self.by_set(op, w, pc, mask, gi, m);
                }
                return self.warp_sync(w, pc, mask, gi, m);
            }
            Op::Shfl { mask: m, .. }
            | Op::Vote { mask: m, .. }
            | Op::Match { mask: m, .. }
            | Op::Redux { mask: m, .. }
            | Op::Elect { mask: m, .. } => {
                let w = &mut cta.warps[wi];
                if several_sets(w, mask, m) {
                    return self.by_set(op, w, pc, mask, gi, m);
                }
                let members = match self.members(w, pc, mask, gi, m) {
                    Ok(m) => m,
                    Err(flow) => return flow,
                };
                w.clock.sync(mask & members, w.exists & !w.exited);
                self.across(op, w, pc, mask, members);
            }
            Op::Ldmatrix { .. }
            | Op::Stmatrix { .. }
            | Op::Movmatrix { .. }
            | Op::Mma { .. }
            | Op::WmmaMove { .. }
            | Op::WmmaMma { .. } => {
                let w = &mut cta.warps[wi];
                let live = w.exists & !w.exited;
                if live & !mask != 0 && !w.groups[gi].forced {
                    return Flow::Wait(State::Sync(live));
                }
                w.groups[gi].forced = false;
                if self.check_sync && mask != u32::MAX {
                    self.find(Class::Sync, "partial warp", wi as u32, pc, mask, None, || {
                        format!("an .aligned matrix instruction executed by lanes {mask:#010x} only")
                    });
                }
                self.matrix(op, cta, wi, pc, mask);
                let w = &mut cta.warps[wi];
                w.clock.sync(mask, live);
            }
            Op::Vprintf { args, ret } => self.vprintf(cta, wi, mask, args, ret),
            Op::Mbar { what, base, offset, generic, d, p, a } => {
                self.mbarrier(cta, wi, pc, mask, what, (base, offset, generic), (d, p, a));
            }
            Op::Fence { near } => self.fence(cta, wi, near),
            Op::Nop | Op::Nanosleep => {}
        }
        Flow::Next
    }

    #[allow(clippy::too_many_arguments)]
    fn cvta(&mut self, w: &mut Warp, pc: u32, mask: u32, to_space: bool, space: Space, bits: u8, d: R, a: R) {
        self.check_regs(w, pc, mask, &[a]);
        let window = match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Param => PARAM_WINDOW,
            _ => 0,
        };
        if bits == 64 {
            if window == 0 {
                w.bank.wide1(d, mask, a, |v| v);
            } else if to_space {
                w.bank.wide1(d, mask, a, |v| v.wrapping_sub(window));
            } else {
                w.bank.wide1(d, mask, a, |v| v.wrapping_add(window));
            }
        } else {
            w.bank.map1(d, mask, a, |v| v);
        }
        self.wrote(w, mask, d);
    }

    /// Lanes that take part in a `.sync`; waits for those missing.
    fn members(&mut self, w: &mut Warp, pc: u32, mask: u32, gi: usize, m: R) -> Result<u32, Flow> {
        self.check_regs(w, pc, mask, &[m]);
        let first = mask.trailing_zeros() as usize;
        let members = w.bank.r32(m)[first];
        let live = w.exists & !w.exited;
        let missing = members & live & !mask;
        if missing != 0 && !w.groups[gi].forced {
            return Err(Flow::Wait(State::Sync(members & live)));
        }
        w.groups[gi].forced = false;
        self.outside(w, pc, mask, members);
        Ok(members)
    }

    /// A `.sync` whose lanes name several sets, as the tiles of a warp do: each set by itself. Sets that
    /// are complete go on, the lanes of the others wait here.
    #[cold]
    fn by_set(&mut self, op: &Op, w: &mut Warp, pc: u32, mask: u32, gi: usize, m: R) -> Flow {
        self.check_regs(w, pc, mask, &[m]);
        let live = w.exists & !w.exited;
        let forced = std::mem::take(&mut w.groups[gi].forced);
        let (mut left, mut done, mut need) = (mask, 0u32, 0u32);
        while left != 0 {
            let named = *w.bank.r32(m);
            let members = named[left.trailing_zeros() as usize];
            let part = lanes(left).filter(|&i| named[i] == members).fold(0u32, |s, i| s | 1 << i);
            left &= !part;
            if members & live & !mask != 0 && !forced {
                need |= members & live;
                continue;
            }
            // A member that is here and names another set will never come.
            let other = members & mask & !part;
            if other != 0 && self.check_sync {
                self.find(Class::Sync, "mask mismatch", w.index, pc, other, None, || {
                    format!(
                        "lanes {other:#010x} give another member mask than {members:#010x}, which names them"
                    )
                });
            }
            self.outside(w, pc, part, members);
            w.clock.sync(part & members, live);
            if !matches!(op, Op::WarpSync { .. }) {
                self.across(op, w, pc, part, members);
            }
            done |= part;
        }
        if done == mask {
            return Flow::Next;
        }
        if done == 0 {
            return Flow::Wait(State::Sync(need));
        }
        let waiting = super::Group { pc, mask: mask & !done, state: State::Sync(need), forced: false };
        w.groups[gi].mask = done;
        w.groups.push(waiting);
        Flow::Again
    }

    /// Reports lanes whose member mask leaves them out.
    fn outside(&mut self, w: &Warp, pc: u32, mask: u32, members: u32) {
        let outside = mask & !members;
        if outside != 0 && self.check_sync {
            self.find(Class::Sync, "outside its mask", w.index, pc, outside, None, || {
                format!(
                    "lanes {outside:#010x} execute a .sync whose member mask {members:#010x} leaves them out"
                )
            });
        }
    }

    fn warp_sync(&mut self, w: &mut Warp, pc: u32, mask: u32, gi: usize, m: R) -> Flow {
        let insts = self.insts;
        match self.members(w, pc, mask, gi, m) {
            Ok(members) => {
                w.clock.sync(mask & members, w.exists & !w.exited);
                Flow::Next
            }
            Err(Flow::Wait(State::Sync(need))) => {
                // Lanes may come by different instructions: together they fill the mask.
                let at_sync = |g: &super::Group| {
                    g.state == State::Sync(need) && matches!(insts[g.pc as usize].op, Op::WarpSync { .. })
                };
                let together = w.groups.iter().filter(|g| at_sync(g)).fold(mask, |a, g| a | g.mask);
                if need & !together != 0 {
                    return Flow::Wait(State::Sync(need));
                }
                w.clock.sync(need, w.exists & !w.exited);
                for g in w.groups.iter_mut().filter(|g| at_sync(g)) {
                    g.state = State::Ready;
                    g.pc += 1;
                }
                Flow::Again
            }
            Err(flow) => flow,
        }
    }

    /// shfl, vote, match, redux, elect with all members present.
    fn across(&mut self, op: &Op, w: &mut Warp, pc: u32, mask: u32, members: u32) {
        match *op {
            Op::Shfl { mode, d, p, a, b, c, .. } => {
                self.check_regs(w, pc, mask, &[b, c]);
                let (src, lane_arg, clamp) = (*w.bank.r32(a), *w.bank.r32(b), *w.bank.r32(c));
                let mut from = [0u8; 32];
                // Where each lane reads, itself when that is outside its segment.
                macro_rules! each {
                    (|$i:ident, $b:ident, $min:ident, $max:ident, $seg:ident| $source:expr, $inside:expr) => {{
                        let mut ok = 0u32;
                        for $i in 0..32u32 {
                            let ($b, cval) = (lane_arg[$i as usize] & 31, clamp[$i as usize] & 31);
                            let $seg = clamp[$i as usize] >> 8 & 31;
                            let ($min, $max) = ($i & $seg, ($i & $seg) | (cval & !$seg));
                            let inside = $inside;
                            let _ = $min;
                            from[$i as usize] = if inside { ($source & 31) as u8 } else { $i as u8 };
                            ok |= u32::from(inside) << $i;
                        }
                        ok
                    }};
                }
                let ok = match mode {
                    ShflMode::Up => {
                        each!(|i, b, min, max, seg| i.wrapping_sub(b), i as i32 - b as i32 >= max as i32)
                    }
                    ShflMode::Down => each!(|i, b, min, max, seg| i + b, i + b <= max),
                    ShflMode::Bfly => each!(|i, b, min, max, seg| i ^ b, i ^ b <= max),
                    ShflMode::Idx => each!(|i, b, min, max, seg| min | (b & !seg), min | (b & !seg) <= max),
                };
                let mut out = [0u32; 32];
                for lane in 0..32 {
                    out[lane] = src[usize::from(from[lane] & 31)];
                }
                let known = w.known[a.slot()];
                let lacking = |have: u32| {
                    if have == u32::MAX {
                        return 0;
                    }
                    lanes(mask)
                        .filter(|&lane| have >> from[lane] & 1 == 0)
                        .fold(0u32, |m, lane| m | 1 << lane)
                };
                let inactive = lacking(mask);
                w.bank.put32(d, mask, &out);
                if self.check_init {
                    w.known[d.slot()] = (w.known[d.slot()] & !mask) | (mask & !lacking(known));
                }
                if inactive != 0 && self.check_sync {
                    self.find(Class::Sync, "inactive source", w.index, pc, inactive, None, || {
                        format!("lanes {inactive:#010x} read by shfl from a lane that does not take part")
                    });
                }
                self.set_pred(w, mask, p, ok);
            }
            Op::Vote { mode, d, p, a, aneg, .. } => {
                self.check_pred(w, pc, mask, a);
                let v = w.preds[a as usize];
                let v = if aneg { !v } else { v } & mask & members;
                let all = mask & members;
                let r = match mode {
                    VoteMode::All => v == all,
                    VoteMode::Any => v != 0,
                    VoteMode::Uni => v == all || v == 0,
                    VoteMode::Ballot => {
                        w.bank.put32(d, mask, &[v; 32]);
                        self.wrote(w, mask, d);
                        return;
                    }
                };
                self.set_pred(w, mask, p, if r { u32::MAX } else { 0 });
            }
            Op::Match { all, d, p, a, .. } => {
                self.check_regs(w, pc, mask, &[a]);
                let vals: [u64; 32] = std::array::from_fn(|i| w.bank.get(a, i));
                let take = mask & members;
                let mut out = [0u32; 32];
                let first = vals[take.trailing_zeros() as usize & 31];
                let equal = lanes(take).all(|i| vals[i] == first);
                for lane in lanes(mask) {
                    out[lane] = if all {
                        if equal { take } else { 0 }
                    } else {
                        lanes(take).filter(|&i| vals[i] == vals[lane]).fold(0, |m, i| m | 1 << i)
                    };
                }
                w.bank.put32(d, mask, &out);
                self.wrote(w, mask, d);
                self.set_pred(w, mask, p, if equal { u32::MAX } else { 0 });
            }
            Op::Redux { op, signed, d, a, .. } => {
                self.check_regs(w, pc, mask, &[a]);
                let v = *w.bank.r32(a);
                let r = lanes(mask & members).map(|i| v[i]).reduce(|x, y| match (op, signed) {
                    (Red::Add | Red::Popc, _) => x.wrapping_add(y),
                    (Red::Min, true) => (x as i32).min(y as i32) as u32,
                    (Red::Max, true) => (x as i32).max(y as i32) as u32,
                    (Red::Min, false) => x.min(y),
                    (Red::Max, false) => x.max(y),
                    (Red::And, _) => x & y,
                    (Red::Or, _) => x | y,
                    (Red::Xor, _) => x ^ y,
                });
                w.bank.put32(d, mask, &[r.unwrap_or(0); 32]);
                self.wrote(w, mask, d);
            }
            Op::Elect { d, p, .. } => {
                let leader = (mask & members).trailing_zeros() & 31;
                w.bank.put32(d, mask, &[leader; 32]);
                self.wrote(w, mask, d);
                self.set_pred(w, mask, p, 1 << leader);
            }
            _ => {}
        }
    }
}
