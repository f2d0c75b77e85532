//! The one check of a launch against its kernel's contract.
//!
//! Typed launchers run it when a launch is built, drivers before they execute one (with the device's limits):
//! the same function for the emulator and for CUDA. It reads nothing on the device. Sizes are compared in
//! u128, where no product of a launch's values can wrap unnoticed.
//!
//! Trap: a buffer whose length is not known (a raw launch) is checked for alignment only; relations that
//! need the length are skipped, and listed by `Launch::unchecked`.

use crate::descriptor::{Access, GridRule, KernelDescriptor, ParamType};
use crate::expression::{EvalError, Leaf, Op, Relation, evaluate};
use crate::launch::{ArgValue, RawLaunch};
use crate::{Compare, DeviceLimits, Extent};

/// How a launch breaks its kernel's contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// Too many or too few arguments.
    #[error(
        "kernel `{kernel}` takes {expected} arguments, the launch has {found}; build it with the typed launcher"
    )]
    Arity {
        /// The entry.
        kernel: &'static str,
        /// Parameters of the kernel.
        expected: usize,
        /// Arguments of the launch.
        found: usize,
    },
    /// An argument of another type.
    #[error(
        "kernel `{kernel}`: parameter `{param}` is {expected}, the argument is {found}; build the launch with the typed launcher"
    )]
    Type {
        /// The entry.
        kernel: &'static str,
        /// The parameter.
        param: &'static str,
        /// Its type.
        expected: ParamType,
        /// The argument's.
        found: &'static str,
    },
    /// Another block than the entry was compiled for.
    #[error(
        "kernel `{kernel}` is compiled for blocks of {expected:?} threads, the launch has block {found:?}; leave the block to the launcher"
    )]
    Block {
        /// The entry.
        kernel: &'static str,
        /// Threads that it was compiled for.
        expected: [u32; 3],
        /// Threads of the launch.
        found: [u32; 3],
    },
    /// Another amount of dynamic shared memory than the entry addresses.
    #[error(
        "kernel `{kernel}` uses {expected} bytes of dynamic shared memory, the launch gives {found}; leave it to the launcher"
    )]
    Shared {
        /// The entry.
        kernel: &'static str,
        /// Bytes that it uses.
        expected: u32,
        /// Bytes of the launch.
        found: u32,
    },
    /// A grid that no device takes.
    #[error("kernel `{kernel}`: the grid has {found} blocks along {axis}, a device takes 1 to {limit}")]
    GridRange {
        /// The entry.
        kernel: &'static str,
        /// x, y or z.
        axis: char,
        /// Blocks of the launch.
        found: u32,
        /// The most a device takes.
        limit: u32,
    },
    /// A grid that is not what the kernel's rule says.
    #[error(
        "kernel `{kernel}`: the grid has {found} blocks along {axis}, the kernel's rule is {rule} = {expected}"
    )]
    Grid {
        /// The entry.
        kernel: &'static str,
        /// x, y or z.
        axis: char,
        /// The rule's text.
        rule: &'static str,
        /// What it comes to.
        expected: u128,
        /// Blocks of the launch.
        found: u32,
    },
    /// A relation that does not hold.
    #[error(
        "kernel `{kernel}` requires {relation}; {left} {compare} {right} does not hold ({}){}",
        list(values),
        remedy(short, right)
    )]
    Relation {
        /// The entry.
        kernel: &'static str,
        /// The relation's text.
        relation: &'static str,
        /// Its left side.
        left: u64,
        /// What it must be to the right side.
        compare: Compare,
        /// Its right side.
        right: u64,
        /// The values in it.
        values: Box<[(String, u64)]>,
        /// The buffer that is too short, where it is about one's length: it needs `right` elements.
        short: Option<&'static str>,
    },
    /// A relation whose sides cannot be computed.
    #[error("kernel `{kernel}` requires {relation}, where {wrong} ({})", list(values))]
    Arithmetic {
        /// The entry.
        kernel: &'static str,
        /// The relation's text.
        relation: &'static str,
        /// What has no result.
        wrong: String,
        /// The values in it.
        values: Box<[(String, u64)]>,
    },
    /// A buffer with elements and no address.
    #[error(
        "kernel `{kernel}`: buffer `{param}` has {len} elements at address 0; allocate it, or pass Region::EMPTY"
    )]
    Null {
        /// The entry.
        kernel: &'static str,
        /// The parameter.
        param: &'static str,
        /// Elements.
        len: u64,
    },
    /// A buffer at an address that the kernel's accesses do not allow.
    #[error("kernel `{kernel}`: buffer `{param}` is at {address:#x}, it must be aligned to {align} bytes")]
    Alignment {
        /// The entry.
        kernel: &'static str,
        /// The parameter.
        param: &'static str,
        /// Its address.
        address: u64,
        /// The alignment that it needs.
        align: u32,
    },
    /// A buffer that goes beyond the address space.
    #[error(
        "kernel `{kernel}`: buffer `{param}` of {bytes} bytes at {address:#x} ends beyond 64 bits; its length is wrong"
    )]
    Range {
        /// The entry.
        kernel: &'static str,
        /// The parameter.
        param: &'static str,
        /// Its address.
        address: u64,
        /// Its length.
        bytes: u64,
    },
    /// A buffer that is written shares memory with another.
    #[error(
        "kernel `{kernel}`: `{written}` ({} bytes at {:#x}) is written and overlaps `{other}` ({} bytes at {:#x}); give each its own memory",
        written_at.1, written_at.0, other_at.1, other_at.0
    )]
    Overlap {
        /// The entry.
        kernel: &'static str,
        /// The buffer that is written.
        written: &'static str,
        /// Its address and bytes.
        written_at: (u64, u64),
        /// The other.
        other: &'static str,
        /// Its address and bytes.
        other_at: (u64, u64),
    },
    /// The device cannot run the kernel.
    #[error(
        "kernel `{kernel}` needs {what} of at least {needed}, the device has {found}; select an instance for this device"
    )]
    Device {
        /// The entry.
        kernel: &'static str,
        /// What is short.
        what: &'static str,
        /// What the kernel needs.
        needed: u32,
        /// What the device has.
        found: u32,
    },
}

fn remedy(short: &Option<&str>, elements: &u64) -> String {
    short.map_or_else(String::new, |name| format!("; pass `{name}` with at least {elements} elements"))
}

fn list(values: &[(String, u64)]) -> String {
    values.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

/// For errors: what does not fit in 64 bits is shown as the largest that does.
fn shown(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Blocks that every device takes along x, y and z.
const GRID_LIMITS: [u32; 3] = [i32::MAX as u32, 65535, 65535];

/// Checks a launch; with `device`, also whether that can run it.
pub(crate) fn check(launch: &RawLaunch, device: Option<&DeviceLimits>) -> Result<(), ContractError> {
    let kernel = launch.kernel;
    signature(launch)?;
    if launch.block != kernel.block {
        return Err(ContractError::Block {
            kernel: kernel.name,
            expected: kernel.block,
            found: launch.block,
        });
    }
    if launch.shared_bytes != kernel.shared_bytes {
        let (expected, found) = (kernel.shared_bytes, launch.shared_bytes);
        return Err(ContractError::Shared { kernel: kernel.name, expected, found });
    }
    grid(launch)?;
    for relation in kernel.contract.requires {
        holds(launch, relation)?;
    }
    buffers(launch)?;
    overlaps(launch)?;
    device.map_or(Ok(()), |limits| fits(kernel, limits))
}

/// The relations that nothing is known about.
pub(crate) fn unchecked(launch: &RawLaunch) -> Vec<&'static str> {
    let value = |leaf| value_of(launch, leaf);
    let unknown = |ops: &[Op]| matches!(evaluate(ops, value), Err(EvalError::Unknown(_)));
    let requires = launch.kernel.contract.requires.iter();
    requires.filter(|r| unknown(r.left) || unknown(r.right)).map(|r| r.text).collect()
}

fn signature(launch: &RawLaunch) -> Result<(), ContractError> {
    let kernel = launch.kernel;
    let (expected, found) = (kernel.params.len(), launch.args.len());
    if expected != found || launch.extents.len() != found {
        return Err(ContractError::Arity { kernel: kernel.name, expected, found });
    }
    for (param, argument) in kernel.params.iter().zip(&launch.args) {
        let (fits, found) = match argument {
            ArgValue::U32(_) => (param.ty == ParamType::U32, "u32"),
            ArgValue::I32(_) => (param.ty == ParamType::I32, "i32"),
            ArgValue::U64(_) => (param.ty == ParamType::U64, "u64"),
            ArgValue::I64(_) => (param.ty == ParamType::I64, "i64"),
            ArgValue::F32(_) => (param.ty == ParamType::F32, "f32"),
            ArgValue::F64(_) => (param.ty == ParamType::F64, "f64"),
            ArgValue::Ptr(_) => (param.ty.is_pointer(), "a device address"),
        };
        if !fits {
            let (kernel, param, expected) = (kernel.name, param.name, param.ty);
            return Err(ContractError::Type { kernel, param, expected, found });
        }
    }
    Ok(())
}

fn grid(launch: &RawLaunch) -> Result<(), ContractError> {
    let kernel = launch.kernel;
    for (index, axis) in ['x', 'y', 'z'].into_iter().enumerate() {
        let (found, limit) = (launch.grid[index], GRID_LIMITS[index]);
        if found == 0 || found > limit {
            return Err(ContractError::GridRange { kernel: kernel.name, axis, found, limit });
        }
        let GridRule::Exactly { text, ops } = kernel.contract.grid[index] else { continue };
        match evaluate(ops, |leaf| value_of(launch, leaf)) {
            Ok(expected) if expected == u128::from(found) => {}
            Ok(expected) => {
                return Err(ContractError::Grid { kernel: kernel.name, axis, rule: text, expected, found });
            }
            Err(EvalError::Unknown(_)) => {}
            Err(wrong) => {
                let relation = Relation { text, left: ops, compare: Compare::Eq, right: &[] };
                return Err(no_result(launch, &relation, &wrong));
            }
        }
    }
    Ok(())
}

fn value_of(launch: &RawLaunch, leaf: Leaf) -> Option<u128> {
    let extent = |index: usize| launch.extents.get(index).copied().flatten();
    match leaf {
        Leaf::Arg(index) => match launch.args.get(index)? {
            ArgValue::U32(v) => Some(u128::from(*v)),
            ArgValue::U64(v) => Some(u128::from(*v)),
            _ => None,
        },
        Leaf::Len(index) => Some(u128::from(extent(index)?.len)),
        Leaf::Largest(index) => Some(u128::from(extent(index)?.largest?)),
        Leaf::Grid(axis) => launch.grid.get(axis).map(|&blocks| u128::from(blocks)),
        Leaf::Size(_) | Leaf::Device(_) => None,
    }
}

/// The leaf as the attribute has it.
fn name_of(kernel: &KernelDescriptor, leaf: Leaf) -> String {
    let param = |index: usize| kernel.params.get(index).map_or("?", |param| param.name);
    match leaf {
        Leaf::Arg(index) => param(index).to_owned(),
        Leaf::Len(index) => format!("{}.len()", param(index)),
        Leaf::Largest(index) => format!("{}.max()", param(index)),
        Leaf::Grid(axis) => match kernel.contract.grid.get(axis) {
            Some(GridRule::Any(Some(name))) => (*name).to_owned(),
            _ => format!("grid.{}", ["x", "y", "z"].get(axis).unwrap_or(&"?")),
        },
        Leaf::Size(index) => format!("size {index}"),
        Leaf::Device(limit) => limit.name().to_owned(),
    }
}

fn values(launch: &RawLaunch, relation: &Relation) -> Box<[(String, u64)]> {
    let all = relation.values(|leaf| name_of(launch.kernel, leaf), |leaf| value_of(launch, leaf));
    all.into_iter().map(|(name, value)| (name, shown(value))).collect()
}

fn no_result(launch: &RawLaunch, relation: &Relation, wrong: &EvalError) -> ContractError {
    ContractError::Arithmetic {
        kernel: launch.kernel.name,
        relation: relation.text,
        wrong: wrong.to_string(),
        values: values(launch, relation),
    }
}

fn holds(launch: &RawLaunch, relation: &Relation) -> Result<(), ContractError> {
    let side = |ops: &[Op]| match evaluate(ops, |leaf| value_of(launch, leaf)) {
        Ok(value) => Ok(Some(value)),
        Err(EvalError::Unknown(_)) => Ok(None),
        Err(wrong) => Err(no_result(launch, relation, &wrong)),
    };
    let (Some(left), Some(right)) = (side(relation.left)?, side(relation.right)?) else { return Ok(()) };
    if relation.compare.holds(left, right) {
        return Ok(());
    }
    let short = match (relation.left, relation.compare) {
        ([Op::Leaf(Leaf::Len(index))], Compare::Ge) => {
            launch.kernel.params.get(*index).map(|param| param.name)
        }
        _ => None,
    };
    Err(ContractError::Relation {
        kernel: launch.kernel.name,
        relation: relation.text,
        left: shown(left),
        compare: relation.compare,
        right: shown(right),
        values: values(launch, relation),
        short,
    })
}

fn buffers(launch: &RawLaunch) -> Result<(), ContractError> {
    let kernel = launch.kernel.name;
    for ((param, argument), extent) in launch.kernel.params.iter().zip(&launch.args).zip(&launch.extents) {
        let ArgValue::Ptr(address) = *argument else { continue };
        if !address.is_multiple_of(u64::from(param.align.max(1))) {
            return Err(ContractError::Alignment { kernel, param: param.name, address, align: param.align });
        }
        let Some(Extent { len, bytes, .. }) = *extent else { continue };
        if address == 0 && len > 0 {
            return Err(ContractError::Null { kernel, param: param.name, len });
        }
        if address.checked_add(bytes).is_none() {
            return Err(ContractError::Range { kernel, param: param.name, address, bytes });
        }
    }
    Ok(())
}

fn overlaps(launch: &RawLaunch) -> Result<(), ContractError> {
    let kernel = launch.kernel;
    let memory = |index: usize| match (launch.args[index], launch.extents[index]) {
        (ArgValue::Ptr(address), Some(extent)) if extent.bytes > 0 => Some((address, extent.bytes)),
        _ => None,
    };
    for pair in disjoint_pairs(kernel) {
        let (Some(a), Some(b)) = (memory(pair.0), memory(pair.1)) else { continue };
        // `buffers` made sure that neither end wraps.
        if a.0 < b.0 + b.1 && b.0 < a.0 + a.1 {
            let (first, second) = (&kernel.params[pair.0], &kernel.params[pair.1]);
            let ((written, written_at), (other, other_at)) = if first.access.writes() {
                ((first.name, a), (second.name, b))
            } else {
                ((second.name, b), (first.name, a))
            };
            return Err(ContractError::Overlap { kernel: kernel.name, written, written_at, other, other_at });
        }
    }
    Ok(())
}

/// The pairs of parameters that may not share memory: all where one is written, but those that the kernel allows.
fn disjoint_pairs(kernel: &KernelDescriptor) -> impl Iterator<Item = (usize, usize)> {
    let params = kernel.params;
    let buffer = |index: &usize| params[*index].access != Access::Value;
    (0..params.len()).filter(buffer).flat_map(move |a| {
        (a + 1..params.len()).filter(buffer).filter_map(move |b| {
            let written = params[a].access.writes() || params[b].access.writes();
            let allowed = kernel.contract.may_overlap.iter().any(|&pair| pair == (a, b) || pair == (b, a));
            (written && !allowed).then_some((a, b))
        })
    })
}

fn fits(kernel: &KernelDescriptor, limits: &DeviceLimits) -> Result<(), ContractError> {
    for (what, needed, found) in [
        ("a compute capability", kernel.min_sm, limits.sm),
        ("a limit of threads a block", kernel.threads(), limits.threads_per_block),
        ("a limit of shared memory a block", kernel.shared_bytes, limits.shared_per_block),
    ] {
        if needed > found {
            return Err(ContractError::Device { kernel: kernel.name, what, needed, found });
        }
    }
    Ok(())
}
