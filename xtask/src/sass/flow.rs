//! Control flow of a kernel: basic blocks, dominators, natural loops.
//!
//! Textbook forms (iterated dominator sets as parent pointers, Cooper, Harvey and Kennedy 2001): kernels
//! have some hundred blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::Instruction;

/// The indices of the instructions of the largest innermost loop; empty without a loop.
pub fn main_loop(instructions: &[Instruction]) -> Vec<usize> {
    let graph = Graph::new(instructions);
    let loops = graph.loops();
    let innermost =
        loops.iter().filter(|(head, body)| !loops.keys().any(|other| other != *head && body.contains(other)));
    let size = |body: &BTreeSet<usize>| body.iter().map(|&b| graph.blocks[b].len()).sum::<usize>();
    let mut best: Option<&BTreeSet<usize>> = None;
    for (_, body) in innermost {
        if best.is_none_or(|best| size(body) > size(best)) {
            best = Some(body);
        }
    }
    best.into_iter().flatten().flat_map(|&b| graph.blocks[b].clone()).collect()
}

struct Graph {
    /// Each block's instructions.
    blocks: Vec<std::ops::Range<usize>>,
    next: Vec<Vec<usize>>,
}

impl Graph {
    fn new(instructions: &[Instruction]) -> Graph {
        let base = |i: usize| instructions[i].opcode.split('.').next().unwrap_or("");
        let ends = |i: usize| matches!(base(i), "BRA" | "BRX" | "JMP" | "EXIT" | "RET" | "KILL");
        let mut starts = BTreeSet::from([0]);
        for (i, instruction) in instructions.iter().enumerate() {
            starts.extend(instruction.target);
            if ends(i) {
                starts.insert(i + 1);
            }
        }
        let starts: Vec<usize> = starts.into_iter().filter(|&start| start < instructions.len()).collect();
        let mut blocks = Vec::new();
        for (b, &start) in starts.iter().enumerate() {
            blocks.push(start..starts.get(b + 1).copied().unwrap_or(instructions.len()));
        }
        let block_of = |i: usize| starts.partition_point(|&start| start <= i) - 1;
        let next = blocks
            .iter()
            .map(|block| {
                let last = block.end - 1;
                let instruction = &instructions[last];
                // `BRA.DIV` goes one way or the other without a predicate.
                let conditional = instruction.predicated || instruction.opcode.starts_with("BRA.DIV");
                let mut next: Vec<usize> = instruction.target.map(block_of).into_iter().collect();
                if (!ends(last) || conditional) && block.end < instructions.len() {
                    next.push(block_of(block.end));
                }
                next
            })
            .collect();
        Graph { blocks, next }
    }

    /// Natural loops: head to body, the head included.
    fn loops(&self) -> BTreeMap<usize, BTreeSet<usize>> {
        if self.blocks.is_empty() {
            return BTreeMap::new();
        }
        let order = self.reverse_postorder();
        let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(i, &b)| (b, i)).collect();
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); self.blocks.len()];
        for &b in &order {
            for &n in &self.next[b] {
                before[n].push(b);
            }
        }
        let parent = dominators(&order, &place, &before);
        let dominates = |head: usize, mut b: usize| loop {
            if b == head {
                return true;
            }
            match parent[b] {
                Some(up) if up != b => b = up,
                _ => return false,
            }
        };
        let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for &b in &order {
            for &head in self.next[b].iter().filter(|&&head| dominates(head, b)) {
                let body = loops.entry(head).or_insert_with(|| BTreeSet::from([head]));
                let mut todo = vec![b];
                while let Some(b) = todo.pop() {
                    if body.insert(b) {
                        todo.extend(&before[b]);
                    }
                }
            }
        }
        loops
    }

    /// The blocks that the kernel's first one reaches.
    fn reverse_postorder(&self) -> Vec<usize> {
        let mut seen = vec![false; self.blocks.len()];
        let mut order = Vec::new();
        let mut stack = vec![(0, 0)];
        seen[0] = true;
        while let Some((b, edge)) = stack.pop() {
            match self.next[b].get(edge) {
                None => order.push(b),
                Some(&n) => {
                    stack.push((b, edge + 1));
                    if !seen[n] {
                        seen[n] = true;
                        stack.push((n, 0));
                    }
                }
            }
        }
        order.reverse();
        order
    }
}

/// The immediate dominator of each block; the first block's is itself.
fn dominators(order: &[usize], place: &BTreeMap<usize, usize>, before: &[Vec<usize>]) -> Vec<Option<usize>> {
    let mut parent = vec![None; before.len()];
    parent[order[0]] = Some(order[0]);
    let mut changed = true;
    while changed {
        changed = false;
        for &b in &order[1..] {
            let known = before[b].iter().copied().filter(|&p| parent[p].is_some());
            let new = known.reduce(|mut x, mut y| {
                while x != y {
                    if place[&x] > place[&y] {
                        x = parent[x].unwrap_or(order[0]);
                    } else {
                        y = parent[y].unwrap_or(order[0]);
                    }
                }
                x
            });
            if parent[b] != new {
                parent[b] = new;
                changed = true;
            }
        }
    }
    parent
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    fn main_loop(code: &str) -> Vec<u32> {
        let mut text = "\t.section\t.text.k,\"ax\"\n".to_owned();
        for (i, line) in code.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
            for word in line.split_inclusive(':') {
                match word.strip_suffix(':') {
                    Some(label) => text.push_str(&format!("{}:\n", label.trim())),
                    None => text.push_str(&format!("/*{i:04x}*/ {} ;\n", word.trim())),
                }
            }
        }
        let function = &parse(&text)[0];
        function.main_loop().iter().map(|&i| function.instructions[i].address).collect()
    }

    #[test]
    fn straight_code_has_no_loop() {
        assert!(main_loop("MOV R1, R2\n@P0 BRA `(.a)\nMOV R2, R3\n.a: EXIT").is_empty());
    }

    #[test]
    fn the_innermost_of_nested_loops_is_found_however_large_the_outer_one_is() {
        let code = "MOV R0, RZ
            .outer: MOV R1, RZ
            MOV R5, RZ
            .inner: FFMA R1, R1, R1, R1
            @P0 BRA `(.inner)
            MOV R6, RZ
            MOV R7, RZ
            @P1 BRA `(.outer)
            EXIT";
        assert_eq!(main_loop(code), [3, 4]);
    }

    #[test]
    fn of_two_innermost_loops_the_larger_counts() {
        let code = ".a: FADD R1, R1, R1
            @P0 BRA `(.a)
            .b: FADD R1, R1, R1
            FADD R1, R1, R1
            @P0 BRA `(.b)
            EXIT";
        assert_eq!(main_loop(code), [2, 3, 4]);
    }

    #[test]
    fn a_loop_with_a_branch_inside_has_both_arms() {
        let code = ".a: FADD R1, R1, R1
            @P0 BRA `(.c)
            MOV R1, R2
            .c: @P1 BRA `(.a)
            EXIT";
        assert_eq!(main_loop(code), [0, 1, 2, 3]);
    }

    #[test]
    fn a_branch_back_from_behind_the_end_is_no_loop() {
        let code = "MOV R1, R2
            BRA.DIV UR4, `(.slow)
            .back: MOV R2, R3
            EXIT
            .slow: SHFL.IDX PT, R1, R1, RZ, 0x1f
            BRA `(.back)";
        assert!(main_loop(code).is_empty());
    }
}
