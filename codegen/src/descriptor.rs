//! What `#[kernel]` records about each PTX entry: the contract of its launch.
//!
//! Descriptors are `static`, generated on the host from the same source as the device code, and checked
//! against the PTX by the lint. A family is all instances of one kernel function.

use std::fmt;

use crate::expression::{Op, Relation};

/// One PTX entry: how to find it, what it takes, how it wants to be launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelDescriptor {
    /// The entry's name in the PTX, as `attend_bf16_d64`.
    pub name: &'static str,
    /// The kernel function's name, as `attend`.
    pub family: &'static str,
    /// Each generic of the function with its value, in declaration order, as `("T", "bf16")`, `("D", "64")`.
    pub specialisation: &'static [(&'static str, &'static str)],
    /// The parameters, in order.
    pub params: &'static [Param],
    /// Threads of a block: x, y, z. The entry refuses any other (`.reqntid`).
    pub block: [u32; 3],
    /// Blocks a multiprocessor shall hold (`.minnctapersm`): bounds the registers.
    pub min_blocks_per_sm: Option<u32>,
    /// Registers a thread may use (`.maxnreg`).
    pub max_registers: Option<u32>,
    /// Dynamic shared memory of a launch, in bytes. Above 48 KiB a driver wants an attribute set first.
    pub shared_bytes: u32,
    /// Lowest compute capability, as 80 for 8.0.
    pub min_sm: u32,
    /// What a launch must keep beside block and shared memory; see [`crate::contract`].
    pub contract: Contract,
    /// What a request must keep for this instance to serve it; see [`crate::family`].
    pub feasible: &'static [Line],
    /// What [`Family::prefer`](crate::Family) compares, of this instance.
    pub cost: &'static [Op],
}

/// The part of a kernel's contract that its attribute states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Blocks along x, y and z.
    pub grid: [GridRule; 3],
    /// Relations between arguments, buffer lengths and grid.
    pub requires: &'static [Relation],
    /// Pairs of parameters that may share memory although one of them is written. All other such pairs may not.
    pub may_overlap: &'static [(usize, usize)],
}

/// How many blocks a grid has along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridRule {
    /// Any number; relations know it by this name where it has one.
    Any(Option<&'static str>),
    /// Exactly as many as an expression says.
    Exactly {
        /// As the attribute has it.
        text: &'static str,
        /// The expression.
        ops: &'static [Op],
    },
}

/// A line of a feasibility function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// What must hold.
    pub relation: Relation,
    /// Why.
    pub reason: &'static str,
}

impl KernelDescriptor {
    /// A kernel of no name with nothing to keep but a block of one thread: what `..` fills in where a
    /// descriptor is written by hand.
    pub const PLAIN: Self = Self {
        name: "",
        family: "",
        specialisation: &[],
        params: &[],
        block: [1, 1, 1],
        min_blocks_per_sm: None,
        max_registers: None,
        shared_bytes: 0,
        min_sm: 80,
        contract: Contract { grid: [GridRule::Any(None); 3], requires: &[], may_overlap: &[] },
        feasible: &[],
        cost: &[],
    };

    /// Threads of a block.
    #[must_use]
    pub const fn threads(&self) -> u32 {
        self.block[0] * self.block[1] * self.block[2]
    }

    /// The value of a generic in this instance, as `value_of("D") == Some("64")`.
    #[must_use]
    pub fn value_of(&self, generic: &str) -> Option<&'static str> {
        self.specialisation.iter().find(|(name, _)| *name == generic).map(|(_, value)| *value)
    }
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// The parameter's name in the source.
    pub name: &'static str,
    /// Its type.
    pub ty: ParamType,
    /// What the kernel does with it.
    pub access: Access,
    /// Alignment of the value; of a buffer, that its address must have.
    pub align: u32,
    /// Bytes of a buffer's element; 0 for a scalar.
    pub element_bytes: u32,
}

impl Param {
    /// A scalar.
    #[must_use]
    pub const fn scalar(name: &'static str, ty: ParamType) -> Self {
        Self { name, ty, access: Access::Value, align: ty.size(), element_bytes: 0 }
    }

    /// A buffer of elements of this size, aligned as they are.
    #[must_use]
    pub const fn buffer(name: &'static str, ty: ParamType, access: Access, element_bytes: u32) -> Self {
        Self { name, ty, access, align: element_bytes, element_bytes }
    }
}

/// What a kernel does with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Takes its value: a scalar.
    Value,
    /// Reads the buffer.
    In,
    /// Writes the buffer and does not read it; it may be uninitialised.
    Out,
    /// Reads and writes the buffer.
    InOut,
}

impl Access {
    /// As manifests have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::In => "in",
            Self::Out => "out",
            Self::InOut => "inout",
        }
    }

    /// Whether the kernel writes it.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Out | Self::InOut)
    }
}

/// What a kernel parameter may be. Pointers name their element (lower case, as `bf16`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The scalars are their names.
pub enum ParamType {
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    /// A device address that the kernel reads.
    ConstPtr(&'static str),
    /// A device address that the kernel writes (and may read).
    MutPtr(&'static str),
}

impl ParamType {
    /// Bytes of the parameter; its alignment too.
    #[must_use]
    pub const fn size(self) -> u32 {
        match self {
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::ConstPtr(_) | Self::MutPtr(_) => 8,
        }
    }

    /// Whether the parameter is a device address.
    #[must_use]
    pub const fn is_pointer(self) -> bool {
        matches!(self, Self::ConstPtr(_) | Self::MutPtr(_))
    }
}

impl fmt::Display for ParamType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U32 => f.write_str("u32"),
            Self::I32 => f.write_str("i32"),
            Self::U64 => f.write_str("u64"),
            Self::I64 => f.write_str("i64"),
            Self::F32 => f.write_str("f32"),
            Self::F64 => f.write_str("f64"),
            Self::ConstPtr(element) => write!(f, "*const {element}"),
            Self::MutPtr(element) => write!(f, "*mut {element}"),
        }
    }
}

/// A type that a kernel family can be specialised for, under the name that its instances carry.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the type of a kernel's instance",
    label = "not an element type",
    note = "the types are bf16, f16, f32, f64 and the integers of 8 to 64 bits (on the host bf16 and f16 are those of \
            the crate `half`); for a plain Copy type of your own write \
            `impl psa_codegen::SpecType for X {{ const NAME: &str = \"x\"; }}`"
)]
pub trait SpecType: Copy + 'static {
    /// The type's name in lower case: the last part of its path, as `#[kernel]` writes it.
    const NAME: &'static str;
}

macro_rules! spec_type {
    ($($ty:ty = $name:literal;)*) => {$(
        impl SpecType for $ty {
            const NAME: &'static str = $name;
        }
    )*};
}

spec_type! {
    half::bf16 = "bf16";
    half::f16 = "f16";
    f32 = "f32";
    f64 = "f64";
    u8 = "u8";
    i8 = "i8";
    u16 = "u16";
    i16 = "i16";
    u32 = "u32";
    i32 = "i32";
    u64 = "u64";
    i64 = "i64";
}

/// A kernel family was asked for an instance that was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "kernel family `{family}` has no instance {}; compiled are {}. Add the values to the instances(..) of its \
     #[kernel] and rebuild the PTX",
    list_asked(asked),
    list_available(available)
)]
pub struct NoSuchInstance {
    /// The kernel function's name.
    pub family: &'static str,
    /// Each generic with the value asked for, in declaration order.
    pub asked: Vec<(&'static str, String)>,
    /// The instances there are.
    pub available: &'static [KernelDescriptor],
}

fn list_asked(asked: &[(&'static str, String)]) -> String {
    asked.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

fn list_available(available: &[KernelDescriptor]) -> String {
    available.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ")
}

/// Used by `#[kernel]`: a block that a device accepts, or a compile error.
#[doc(hidden)]
#[must_use]
pub const fn checked_block(block: [u32; 3]) -> [u32; 3] {
    assert!(
        block[0] > 0 && block[1] > 0 && block[2] > 0,
        "a block has at least one thread in each dimension"
    );
    assert!(block[0] as u64 * block[1] as u64 * block[2] as u64 <= 1024, "a block has at most 1024 threads");
    block
}

/// Used by `#[kernel]`: an alignment, or a compile error.
#[doc(hidden)]
#[must_use]
pub const fn checked_align(align: u64, element: usize) -> u32 {
    assert!(align.is_power_of_two() && align <= 256, "an alignment is a power of two up to 256 bytes");
    assert!(
        align >= element as u64,
        "an alignment in align(..) is at least that of the element; leave it out for that one"
    );
    align as u32
}

/// Used by `#[kernel]`: a size that a device can have, or a compile error.
#[doc(hidden)]
#[must_use]
pub const fn checked_shared_bytes(bytes: u64) -> u32 {
    // The largest of any supported device: 227 KiB a block from sm_90 on.
    assert!(bytes <= 227 * 1024, "a block has at most 227 KiB of shared memory");
    bytes as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    static TWO: [KernelDescriptor; 2] = {
        const fn descriptor(
            name: &'static str,
            d: &'static [(&'static str, &'static str)],
        ) -> KernelDescriptor {
            KernelDescriptor {
                name,
                family: "attend",
                specialisation: d,
                block: [32, 4, 2],
                ..KernelDescriptor::PLAIN
            }
        }
        [
            descriptor("attend_bf16_d64", &[("T", "bf16"), ("D", "64")]),
            descriptor("attend_bf16_d128", &[("T", "bf16"), ("D", "128")]),
        ]
    };

    #[test]
    fn a_missing_instance_names_family_request_and_alternatives() {
        let error = NoSuchInstance {
            family: "attend",
            asked: vec![("T", "f32".to_owned()), ("D", "96".to_owned())],
            available: &TWO,
        };
        let text = error.to_string();
        for part in ["`attend`", "T = f32, D = 96", "attend_bf16_d64, attend_bf16_d128", "instances(..)"] {
            assert!(text.contains(part), "{part} missing in: {text}");
        }
    }

    #[test]
    fn a_descriptor_answers_for_its_generics_and_threads() {
        assert_eq!(TWO[1].value_of("D"), Some("128"));
        assert_eq!(TWO[1].value_of("G"), None);
        assert_eq!(TWO[1].threads(), 256);
    }

    #[test]
    #[should_panic(expected = "at most 1024")]
    fn a_block_beyond_the_hardware_is_refused() {
        let _ = checked_block([32, 33, 1]);
    }

    #[test]
    #[should_panic(expected = "227 KiB")]
    fn shared_memory_beyond_the_hardware_is_refused() {
        let _ = checked_shared_bytes(1 << 18);
    }
}
