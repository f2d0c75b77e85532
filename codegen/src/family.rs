//! Which instance of a kernel serves a request: first what can (feasibility), then what should (preference).
//!
//! Feasibility is a list of lines, each a comparison with its reason: the types, the lines of the attribute,
//! and what every kernel needs of a device. Preference only orders what is feasible. A choice says why it
//! was made, and is checked for the request at hand however it came about: an identifier from a tuning
//! cache that does not fit is left aside and named, one that the caller insists on is an error with the line.

use std::fmt;
use std::marker::PhantomData;

use crate::expression::{Binary, Compare, EvalError, Leaf, Limit, Op, evaluate, render};
use crate::{Arguments, ContractError, DeviceLimits, KernelDescriptor, Launch};

/// A kernel function with all its instances.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The function's name.
    pub name: &'static str,
    /// What was compiled; each one's `name` is its identifier, stable across builds.
    pub instances: &'static [KernelDescriptor],
    /// The type generics, which a request names.
    pub types: &'static [&'static str],
    /// The sizes that a request has, in order.
    pub sizes: &'static [&'static str],
    /// Which of several feasible instances is taken: without it, the first in the order of `instances`.
    pub prefer: Option<Prefer>,
}

/// A preference among feasible instances, by [`KernelDescriptor::cost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefer {
    /// The largest instead of the least.
    pub most: bool,
    /// The expression's text.
    pub text: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// What an instance is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A name for each type generic, in order, as `bf16`.
    pub types: &'a [&'a str],
    /// A number for each size, in order.
    pub sizes: &'a [u64],
}

/// What the caller knows about the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint<'a> {
    /// Nothing.
    None,
    /// This instance or an error.
    Override(&'a str),
    /// This instance was the fastest when somebody measured, perhaps for another request.
    Tuned(&'a str),
}

/// Why an instance was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The caller insisted.
    Override,
    /// It was measured to be the fastest.
    Tuned,
    /// The family's preference.
    Preference {
        /// What is preferred and why; `None` where the order of the instances decides.
        rule: Option<Prefer>,
        /// Instances that were feasible.
        feasible: usize,
        /// The tuned instance that was left aside, and the line it breaks; an unknown one breaks none.
        left_aside: Option<(String, Option<Violation>)>,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Override => f.write_str("override"),
            Self::Tuned => f.write_str("tuned"),
            Self::Preference { rule, feasible, left_aside } => {
                match rule {
                    Some(rule) => {
                        let which = if rule.most { "most" } else { "least" };
                        write!(
                            f,
                            "preference: {which} {} of {feasible} feasible ({})",
                            rule.text, rule.reason
                        )?;
                    }
                    None => write!(f, "preference: first of {feasible} feasible")?,
                }
                match left_aside {
                    Some((id, Some(violation))) => write!(f, "; tuned `{id}` left aside: {violation}"),
                    Some((id, None)) => write!(f, "; tuned `{id}` left aside: there is no such instance"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A line of a feasibility function that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The line.
    pub line: String,
    /// Why it is there.
    pub reason: String,
    /// The values in it.
    pub values: Vec<(String, String)>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<_> = self.values.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        write!(f, "{} does not hold ({}): {}", self.line, values.join(", "), self.reason)
    }
}

/// No instance can serve a request, or not the one that the caller insists on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Infeasible {
    /// There is no instance of this identifier.
    #[error("kernel family `{family}` has no instance `{id}`; compiled are {}", names(instances))]
    Unknown {
        /// The family.
        family: &'static str,
        /// The identifier asked for.
        id: String,
        /// The instances there are.
        instances: &'static [KernelDescriptor],
    },
    /// The instance that the caller insists on cannot serve the request.
    #[error("`{id}` cannot serve {request}: {violation}")]
    Override {
        /// Its identifier.
        id: &'static str,
        /// The request.
        request: String,
        /// The first line that does not hold.
        violation: Box<Violation>,
    },
    /// No instance can serve the request.
    #[error("no instance of kernel family `{family}` can serve {request}: {}", summary(violations))]
    Nothing {
        /// The family.
        family: &'static str,
        /// The request.
        request: String,
        /// For each instance, the first line that does not hold.
        violations: Vec<(&'static str, Violation)>,
    },
    /// The request has not the family's types and sizes.
    #[error("a request to kernel family `{family}` has types {types:?} and sizes {sizes:?}, in this order")]
    Request {
        /// The family.
        family: &'static str,
        /// Its types.
        types: &'static [&'static str],
        /// Its sizes.
        sizes: &'static [&'static str],
    },
}

fn names(instances: &[KernelDescriptor]) -> String {
    instances.iter().map(|instance| instance.name).collect::<Vec<_>>().join(", ")
}

/// Each line once, with the instance that comes last: the one that got furthest stands at the end.
fn summary(violations: &[(&'static str, Violation)]) -> String {
    let mut lines: Vec<(&str, &Violation, usize)> = Vec::new();
    for (id, violation) in violations {
        match lines.iter_mut().find(|(_, seen, _)| seen.line == violation.line) {
            Some(entry) => *entry = (id, violation, entry.2 + 1),
            None => lines.push((id, violation, 1)),
        }
    }
    let text = |(id, violation, count): &(&str, &Violation, usize)| match count {
        1 => format!("`{id}`: {violation}"),
        n => format!("`{id}` and {} more: {violation}", n - 1),
    };
    lines.iter().map(text).collect::<Vec<_>>().join("; ")
}

/// A choice of an instance, untyped.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The instance.
    pub kernel: &'static KernelDescriptor,
    /// Why this one.
    pub why: Why,
}

/// A line as a text that other programs can evaluate, and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineText {
    /// In the grammar of docs/manifest.md.
    pub expression: String,
    /// Why.
    pub reason: String,
}

const TYPE_REASON: &str = "elements are compiled for one type";

impl Family {
    /// Chooses an instance for a request on a device.
    ///
    /// # Errors
    /// [`Infeasible`].
    pub fn select(
        &self,
        request: Request<'_>,
        device: &DeviceLimits,
        hint: Hint<'_>,
    ) -> Result<Selected, Infeasible> {
        if request.types.len() != self.types.len() || request.sizes.len() != self.sizes.len() {
            return Err(Infeasible::Request { family: self.name, types: self.types, sizes: self.sizes });
        }
        let named = |id: &str| self.instances.iter().find(|instance| instance.name == id);
        let mut left_aside = None;
        match hint {
            Hint::None => {}
            Hint::Override(id) => {
                let Some(kernel) = named(id) else {
                    let (family, instances) = (self.name, self.instances);
                    return Err(Infeasible::Unknown { family, id: id.to_owned(), instances });
                };
                return match self.violation(kernel, request, device) {
                    None => Ok(Selected { kernel, why: Why::Override }),
                    Some(violation) => {
                        let request = self.describe(request, device);
                        let violation = Box::new(violation);
                        Err(Infeasible::Override { id: kernel.name, request, violation })
                    }
                };
            }
            Hint::Tuned(id) => {
                match named(id).map(|kernel| (kernel, self.violation(kernel, request, device))) {
                    Some((kernel, None)) => return Ok(Selected { kernel, why: Why::Tuned }),
                    Some((_, violation)) => left_aside = Some((id.to_owned(), violation)),
                    None => left_aside = Some((id.to_owned(), None)),
                }
            }
        }
        let mut violations = Vec::new();
        let mut best: Option<(&'static KernelDescriptor, u128)> = None;
        for kernel in self.instances {
            if let Some(violation) = self.violation(kernel, request, device) {
                violations.push((kernel.name, violation));
                continue;
            }
            let cost = self.cost(kernel, request);
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((kernel, cost));
            }
        }
        match best {
            Some((kernel, _)) => {
                let feasible = self.instances.len() - violations.len();
                Ok(Selected { kernel, why: Why::Preference { rule: self.prefer, feasible, left_aside } })
            }
            None => {
                let request = self.describe(request, device);
                Err(Infeasible::Nothing { family: self.name, request, violations })
            }
        }
    }

    /// The first line of an instance's feasibility that does not hold for a request; `None`: it is feasible.
    #[must_use]
    pub fn violation(
        &self,
        kernel: &KernelDescriptor,
        request: Request<'_>,
        device: &DeviceLimits,
    ) -> Option<Violation> {
        for (generic, asked) in self.types.iter().zip(request.types) {
            let compiled = kernel.value_of(generic).unwrap_or("?");
            if compiled != *asked {
                return Some(Violation {
                    line: format!("{generic} == {compiled}"),
                    reason: TYPE_REASON.to_owned(),
                    values: vec![((*generic).to_owned(), (*asked).to_owned())],
                });
            }
        }
        let value = |leaf| value_of(request, device, leaf);
        let name = |leaf| self.name_of(leaf);
        let broken = |left: &[Op], compare: Compare, right: &[Op]| {
            let sides = (evaluate(left, value), evaluate(right, value));
            match sides {
                (Ok(left), Ok(right)) => !compare.holds(left, right),
                // A line that cannot be computed does not hold; nothing in a request is unknown.
                (Err(EvalError::Arithmetic { .. } | EvalError::Unknown(_)), _) | (_, Err(_)) => true,
            }
        };
        for line in kernel.feasible {
            let relation = &line.relation;
            if broken(relation.left, relation.compare, relation.right) {
                let values = relation.values(name, value);
                return Some(Violation {
                    line: relation.text.to_owned(),
                    reason: line.reason.to_owned(),
                    values: values.into_iter().map(|(name, value)| (name, value.to_string())).collect(),
                });
            }
        }
        for line in device_lines(kernel) {
            if broken(&line.left, line.compare, &line.right) {
                let leaf = |op: &Op| match *op {
                    Op::Leaf(leaf) => Some((name(leaf), value(leaf)?.to_string())),
                    _ => None,
                };
                return Some(Violation {
                    line: line.render(),
                    reason: line.reason.to_owned(),
                    values: line.left.iter().chain(&line.right).filter_map(leaf).collect(),
                });
            }
        }
        None
    }

    /// Every line of an instance's feasibility.
    #[must_use]
    pub fn lines(&self, kernel: &KernelDescriptor) -> Vec<LineText> {
        let mut out = Vec::new();
        for generic in self.types {
            let compiled = kernel.value_of(generic).unwrap_or("?");
            let expression = format!("{generic} == \"{compiled}\"");
            out.push(LineText { expression, reason: TYPE_REASON.to_owned() });
        }
        for line in kernel.feasible {
            let expression = line.relation.render(|leaf| self.name_of(leaf));
            out.push(LineText { expression, reason: line.reason.to_owned() });
        }
        for line in device_lines(kernel) {
            out.push(LineText { expression: line.render(), reason: line.reason.to_owned() });
        }
        out
    }

    /// The number by which an instance is preferred, as text; empty without a preference.
    #[must_use]
    pub fn cost_text(&self, kernel: &KernelDescriptor) -> String {
        render(kernel.cost, |leaf| self.name_of(leaf))
    }

    fn cost(&self, kernel: &KernelDescriptor, request: Request<'_>) -> u128 {
        let Some(prefer) = self.prefer else { return 0 };
        // No leaf of a cost is a limit of the device: the macro allows sizes and constants only.
        let value = |leaf| value_of(request, &DeviceLimits::of_sm(kernel.min_sm), leaf);
        match evaluate(kernel.cost, value) {
            Ok(cost) if prefer.most => u128::MAX - cost,
            Ok(cost) => cost,
            Err(_) => u128::MAX,
        }
    }

    fn name_of(&self, leaf: Leaf) -> String {
        match leaf {
            Leaf::Size(index) => self.sizes.get(index).map_or("?", |name| name).to_owned(),
            Leaf::Device(limit) => limit.name().to_owned(),
            other => format!("{other:?}"),
        }
    }

    fn describe(&self, request: Request<'_>, device: &DeviceLimits) -> String {
        let types = self.types.iter().zip(request.types).map(|(name, value)| format!("{name} = {value}"));
        let sizes = self.sizes.iter().zip(request.sizes).map(|(name, value)| format!("{name} = {value}"));
        let list = types.chain(sizes).collect::<Vec<_>>().join(", ");
        format!("({list}) on sm_{}", device.sm)
    }
}

fn value_of(request: Request<'_>, device: &DeviceLimits, leaf: Leaf) -> Option<u128> {
    match leaf {
        Leaf::Size(index) => request.sizes.get(index).map(|&size| u128::from(size)),
        Leaf::Device(limit) => Some(u128::from(match limit {
            Limit::Sm => device.sm,
            Limit::SharedPerBlock => device.shared_per_block,
            Limit::ThreadsPerBlock => device.threads_per_block,
            Limit::ThreadsPerSm => device.threads_per_sm,
            Limit::RegistersPerBlock => device.registers_per_block,
            Limit::RegistersPerSm => device.registers_per_sm,
        })),
        _ => None,
    }
}

struct DeviceLine {
    left: Vec<Op>,
    compare: Compare,
    right: Vec<Op>,
    reason: &'static str,
}

impl DeviceLine {
    fn render(&self) -> String {
        let name = |leaf| match leaf {
            Leaf::Device(limit) => limit.name().to_owned(),
            other => format!("{other:?}"),
        };
        format!("{} {} {}", render(&self.left, name), self.compare, render(&self.right, name))
    }
}

/// Fewest registers of a thread below which ptxas spills in any kernel worth launching.
const LEAST_REGISTERS: u32 = 32;

/// What every kernel needs of a device.
fn device_lines(kernel: &KernelDescriptor) -> Vec<DeviceLine> {
    let threads = kernel.threads();
    let product = |factors: &[u32]| {
        let mut ops: Vec<Op> = Vec::new();
        for (index, &factor) in factors.iter().enumerate() {
            ops.push(Op::Const(u128::from(factor), ""));
            if index > 0 {
                ops.push(Op::Binary(Binary::Mul));
            }
        }
        ops
    };
    let at_most = |factors: &[u32], limit, reason| DeviceLine {
        left: product(factors),
        compare: Compare::Le,
        right: vec![Op::Leaf(Leaf::Device(limit))],
        reason,
    };
    let mut lines = vec![
        at_most(&[kernel.min_sm], Limit::Sm, "the entry uses instructions of this compute capability"),
        at_most(&[threads], Limit::ThreadsPerBlock, "the threads of a block (.reqntid)"),
        at_most(
            &[kernel.shared_bytes],
            Limit::SharedPerBlock,
            "dynamic shared memory of a block, with the opt-in above 48 KiB",
        ),
    ];
    if let Some(registers) = kernel.max_registers {
        let reason = "registers of a block (.maxnreg for each thread)";
        lines.push(at_most(&[registers, threads], Limit::RegistersPerBlock, reason));
    }
    if let Some(blocks) = kernel.min_blocks_per_sm {
        let reason = "the blocks that .minnctapersm promises must fit a multiprocessor";
        lines.push(at_most(&[blocks, threads], Limit::ThreadsPerSm, reason));
        let reason = "with fewer than 32 registers a thread for the blocks of .minnctapersm, ptxas spills";
        lines.push(at_most(&[blocks, threads, LEAST_REGISTERS], Limit::RegistersPerSm, reason));
    }
    lines
}

/// A kernel as a type: what keeps the choices and arguments of one kernel from another's launcher.
pub trait Kernel {
    /// The arguments of its launches.
    type Args: KernelArgs;
    /// Its family.
    const FAMILY: &'static Family;
}

/// Arguments of a launch, one field per parameter.
pub trait KernelArgs {
    /// The values, in the order of the parameters.
    fn arguments(self) -> Arguments;
}

/// An instance of kernel `K`, chosen for a request.
#[derive(Debug)]
pub struct Choice<K> {
    selected: Selected,
    kernel: PhantomData<fn() -> K>,
}

impl<K> Clone for Choice<K> {
    fn clone(&self) -> Self {
        Self { selected: self.selected.clone(), kernel: PhantomData }
    }
}

impl<K: Kernel> Choice<K> {
    /// Chooses an instance; see [`Family::select`].
    ///
    /// # Errors
    /// [`Infeasible`].
    pub fn select(request: Request<'_>, device: &DeviceLimits, hint: Hint<'_>) -> Result<Self, Infeasible> {
        Ok(Self { selected: K::FAMILY.select(request, device, hint)?, kernel: PhantomData })
    }

    /// The instance.
    #[must_use]
    pub fn kernel(&self) -> &'static KernelDescriptor {
        self.selected.kernel
    }

    /// Why this one.
    #[must_use]
    pub fn why(&self) -> &Why {
        &self.selected.why
    }

    /// The launch of the instance over `grid` blocks, for a device to execute.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn launch(&self, grid: [u32; 3], args: K::Args) -> Result<Launch, ContractError> {
        Launch::new(self.selected.kernel, grid, args.arguments())
    }
}
