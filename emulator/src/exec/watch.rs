//! Events for the hooks of an embedding program.

use super::{Cta, Machine, Warp};
use crate::hooks::{AccessKind, InstructionEvent, MemoryEvent};
use crate::inst::Op;
use crate::types::Space;

impl Machine<'_> {
    fn watched_place(&self, pc: u32) -> (u32, Option<(&str, u32)>) {
        let place = self.l.prog.places.get(pc as usize).copied().unwrap_or_default();
        let file = if place.file == 0 { None } else { self.l.files.get(&place.file) };
        (place.line, file.map(|f| (f.as_str(), place.source)))
    }

    /// Tells of an instruction; the accesses told of next are its own.
    #[cold]
    pub(super) fn watch_instruction(&mut self, w: &Warp, pc: u32, lanes: u32) {
        self.watched = pc;
        let Some(hooks) = self.hooks.take() else { return };
        let (line, source) = self.watched_place(pc);
        hooks.instruction(&InstructionEvent { line, source, cta: self.cta_id, warp: w.index, lanes });
        self.hooks = Some(hooks);
    }

    /// Tells of an access of the instruction under way.
    #[cold]
    pub(super) fn watch_memory(
        &mut self,
        cta: &Cta,
        wi: usize,
        space: Space,
        lanes: u32,
        bytes: usize,
        write: bool,
    ) {
        if lanes == 0 {
            return;
        }
        let Some(hooks) = self.hooks.take() else { return };
        let (line, source) = self.watched_place(self.watched);
        let kind = match self.insts.get(self.watched as usize).map(|i| &i.op) {
            Some(Op::Atom { .. }) => AccessKind::Atomic,
            _ if write => AccessKind::Write,
            _ => AccessKind::Read,
        };
        hooks.memory(&MemoryEvent {
            line,
            source,
            cta: self.cta_id,
            warp: cta.warps[wi].index,
            space,
            kind,
            lanes,
            bytes: bytes as u32,
            addresses: &cta.warps[wi].addr,
        });
        self.hooks = Some(hooks);
    }
}
