//! Arithmetic over the values of a launch, as data: what contracts and feasibility lines are made of.
//!
//! An expression is a postfix list of [`Op`]s over unsigned integers, built by `#[kernel]` from the Rust in
//! the attribute, with every constant of the instance already in it. It is evaluated in u128 with every
//! step checked, so that no product of a launch's 32-bit extents is ever wrong by wrapping, and printed
//! as text for `manifest.json`, where other languages evaluate it.

use std::fmt;

/// One step of a postfix expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A number, and the source text that gave it where that is not the number.
    Const(u128, &'static str),
    /// A value that only the launch or the request knows.
    Leaf(Leaf),
    /// An operation on the last two values.
    Binary(Binary),
}

/// A value that an expression takes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// The scalar argument of this index.
    Arg(usize),
    /// Elements of the buffer argument of this index: `x.len()`.
    Len(usize),
    /// Largest value in the buffer argument of this index, if the host knows it: `x.max()`.
    Largest(usize),
    /// Blocks along this axis of the grid.
    Grid(usize),
    /// The request's size of this index.
    Size(usize),
    /// A limit of the device.
    Device(Limit),
}

/// A limit of a device, by its name in manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // See the fields of `DeviceLimits`.
pub enum Limit {
    Sm,
    SharedPerBlock,
    ThreadsPerBlock,
    ThreadsPerSm,
    RegistersPerBlock,
    RegistersPerSm,
}

impl Limit {
    /// The name, as `device.sm`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm => "device.sm",
            Self::SharedPerBlock => "device.shared_per_block",
            Self::ThreadsPerBlock => "device.threads_per_block",
            Self::ThreadsPerSm => "device.threads_per_sm",
            Self::RegistersPerBlock => "device.registers_per_block",
            Self::RegistersPerSm => "device.registers_per_sm",
        }
    }
}

/// An operation on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // They are their names.
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Min,
    Max,
    DivCeil,
}

impl Binary {
    fn apply(self, a: u128, b: u128) -> Result<u128, EvalError> {
        let out_of_range = |wrong| EvalError::Arithmetic { wrong, left: a, op: self, right: b };
        match self {
            Self::Add => a.checked_add(b).ok_or(out_of_range("exceeds 128 bits")),
            Self::Sub => a.checked_sub(b).ok_or(out_of_range("is negative")),
            Self::Mul => a.checked_mul(b).ok_or(out_of_range("exceeds 128 bits")),
            Self::Div => a.checked_div(b).ok_or(out_of_range("divides by zero")),
            Self::Rem => a.checked_rem(b).ok_or(out_of_range("divides by zero")),
            Self::DivCeil if b == 0 => Err(out_of_range("divides by zero")),
            Self::DivCeil => Ok(a.div_ceil(b)),
            Self::Min => Ok(a.min(b)),
            Self::Max => Ok(a.max(b)),
        }
    }

    /// Name and binding strength; functions bind strongest.
    fn spelling(self) -> (&'static str, u8) {
        match self {
            Self::Add => (" + ", 1),
            Self::Sub => (" - ", 1),
            Self::Mul => (" * ", 2),
            Self::Div => (" / ", 2),
            Self::Rem => (" % ", 2),
            Self::Min => ("min", 3),
            Self::Max => ("max", 3),
            Self::DivCeil => ("div_ceil", 3),
        }
    }
}

/// How two expressions must compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // They are their names.
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Compare {
    /// Whether it holds.
    #[must_use]
    pub const fn holds(self, a: u128, b: u128) -> bool {
        match self {
            Self::Eq => a == b,
            Self::Ne => a != b,
            Self::Lt => a < b,
            Self::Le => a <= b,
            Self::Gt => a > b,
            Self::Ge => a >= b,
        }
    }
}

impl fmt::Display for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
        })
    }
}

/// A comparison that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// As the attribute has it.
    pub text: &'static str,
    /// Left side.
    pub left: &'static [Op],
    /// The comparison.
    pub compare: Compare,
    /// Right side.
    pub right: &'static [Op],
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalError {
    /// A leaf that nobody knows, as the largest value of a buffer that was filled on the device.
    Unknown(Leaf),
    /// A step has no result.
    Arithmetic {
        /// What is wrong with it.
        wrong: &'static str,
        /// Left operand.
        left: u128,
        /// The step.
        op: Binary,
        /// Right operand.
        right: u128,
    },
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(_) => f.write_str("a value in it is not known"),
            Self::Arithmetic { wrong, left, op, right } => {
                let (name, strength) = op.spelling();
                if strength == 3 {
                    write!(f, "{name}({left}, {right}) {wrong}")
                } else {
                    write!(f, "{left}{name}{right} {wrong}")
                }
            }
        }
    }
}

/// Evaluates a postfix expression; `value` gives the leaves, `None` for an unknown one.
///
/// # Errors
/// [`EvalError`].
pub fn evaluate(ops: &[Op], value: impl Fn(Leaf) -> Option<u128>) -> Result<u128, EvalError> {
    let mut stack: Vec<u128> = Vec::with_capacity(8);
    for op in ops {
        let next = match *op {
            Op::Const(number, _) => number,
            Op::Leaf(leaf) => value(leaf).ok_or(EvalError::Unknown(leaf))?,
            Op::Binary(binary) => {
                let (right, left) = (stack.pop().unwrap_or(0), stack.pop().unwrap_or(0));
                binary.apply(left, right)?
            }
        };
        stack.push(next);
    }
    Ok(stack.pop().unwrap_or(0))
}

/// The expression as text with its constants as numbers, in the grammar of docs/manifest.md; `name` names
/// the leaves.
pub fn render(ops: &[Op], name: impl Fn(Leaf) -> String) -> String {
    let mut stack: Vec<(String, u8)> = Vec::new();
    for op in ops {
        let next = match *op {
            Op::Const(number, _) => (number.to_string(), 3),
            Op::Leaf(leaf) => (name(leaf), 3),
            Op::Binary(binary) => {
                let (right, r) = stack.pop().unwrap_or_default();
                let (left, l) = stack.pop().unwrap_or_default();
                let (spelling, strength) = binary.spelling();
                if strength == 3 {
                    (format!("{spelling}({left}, {right})"), 3)
                } else {
                    let left = if l < strength { format!("({left})") } else { left };
                    // Equal strength on the right needs its parentheses: a - (b - c), a / (b * c).
                    let right = if r <= strength { format!("({right})") } else { right };
                    (format!("{left}{spelling}{right}"), strength)
                }
            }
        };
        stack.push(next);
    }
    stack.pop().map_or_else(String::new, |(text, _)| text)
}

impl Relation {
    /// As [`render`].
    pub fn render(&self, name: impl Fn(Leaf) -> String) -> String {
        format!("{} {} {}", render(self.left, &name), self.compare, render(self.right, &name))
    }

    /// Every value that the relation took from outside or from a named constant, once, in order, for the
    /// text of an error.
    pub fn values(
        &self,
        name: impl Fn(Leaf) -> String,
        value: impl Fn(Leaf) -> Option<u128>,
    ) -> Vec<(String, u128)> {
        let mut out: Vec<(String, u128)> = Vec::new();
        for op in self.left.iter().chain(self.right) {
            let entry = match *op {
                Op::Const(number, text) if !text.is_empty() => (text.to_owned(), number),
                Op::Leaf(leaf) => match value(leaf) {
                    Some(number) => (name(leaf), number),
                    None => continue,
                },
                _ => continue,
            };
            if !out.contains(&entry) {
                out.push(entry);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn n(number: u128) -> Op {
        Op::Const(number, "")
    }
    const A: Op = Op::Leaf(Leaf::Arg(0));
    const B: Op = Op::Leaf(Leaf::Arg(1));

    fn value(leaf: Leaf) -> Option<u128> {
        match leaf {
            Leaf::Arg(0) => Some(u128::from(u64::MAX)),
            Leaf::Arg(1) => Some(7),
            _ => None,
        }
    }

    fn name(leaf: Leaf) -> String {
        match leaf {
            Leaf::Arg(0) => "a".into(),
            Leaf::Arg(1) => "b".into(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn products_of_launch_values_do_not_wrap() {
        use Binary::*;
        let square = [A, A, Op::Binary(Mul)];
        assert_eq!(evaluate(&square, value), Ok(u128::from(u64::MAX) * u128::from(u64::MAX)));
        let cube = [A, A, Op::Binary(Mul), A, Op::Binary(Mul)];
        let error = evaluate(&cube, value).unwrap_err().to_string();
        assert!(error.contains("exceeds 128 bits"), "{error}");
    }

    #[test]
    fn steps_without_a_result_say_which_and_with_what() {
        use Binary::*;
        for (op, text) in [
            (Sub, "0 - 7 is negative"),
            (Div, "7 / 0 divides by zero"),
            (Rem, "7 % 0 divides by zero"),
            (DivCeil, "div_ceil(7, 0) divides by zero"),
        ] {
            let ops = if op == Sub { [n(0), B, Op::Binary(op)] } else { [B, n(0), Op::Binary(op)] };
            assert_eq!(evaluate(&ops, value).unwrap_err().to_string(), text);
        }
        let unknown = Leaf::Largest(3);
        assert_eq!(evaluate(&[Op::Leaf(unknown)], value), Err(EvalError::Unknown(unknown)));
    }

    #[test]
    fn every_operation_is_the_integer_one() {
        use Binary::*;
        for (op, want) in
            [(Add, 9), (Sub, 5), (Mul, 14), (Div, 3), (Rem, 1), (Min, 2), (Max, 7), (DivCeil, 4)]
        {
            assert_eq!(evaluate(&[B, n(2), Op::Binary(op)], value), Ok(want), "{op:?}");
        }
        for (compare, holds) in [
            (Compare::Eq, [false, true, false]),
            (Compare::Ne, [true, false, true]),
            (Compare::Lt, [true, false, false]),
            (Compare::Le, [true, true, false]),
            (Compare::Gt, [false, false, true]),
            (Compare::Ge, [false, true, true]),
        ] {
            assert_eq!([1, 2, 3].map(|a| compare.holds(a, 2)), holds, "{compare}");
        }
    }

    #[test]
    fn text_has_the_parentheses_it_needs_and_no_others() {
        use Binary::*;
        let b = Op::Binary;
        for (ops, text) in [
            (vec![A, B, n(2), b(Mul), b(Add)], "a + b * 2"),
            (vec![A, B, b(Add), n(2), b(Mul)], "(a + b) * 2"),
            (vec![A, B, n(2), b(Sub), b(Sub)], "a - (b - 2)"),
            (vec![A, B, b(Sub), n(2), b(Sub)], "a - b - 2"),
            (vec![A, B, n(2), b(Mul), b(Div)], "a / (b * 2)"),
            (vec![A, B, b(Add), n(16), b(DivCeil), n(64), b(Min)], "min(div_ceil(a + b, 16), 64)"),
        ] {
            assert_eq!(render(&ops, name), text);
        }
    }
}
