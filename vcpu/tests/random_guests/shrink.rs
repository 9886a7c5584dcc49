//! Makes a failing program small: parts are left out as long as it still fails (delta debugging).

use crate::program::{Edit, Op, Program, Touch};

/// Programs tried at most.
const TRIES: usize = 2000;

/// A program that `fails` as the given one does, and has nothing in it that could be left out by itself.
pub fn shrink(program: &Program, mut fails: impl FnMut(&Program) -> bool) -> Program {
    let mut best = program.clone();
    let mut tries = 0;
    let mut fails = |candidate: &Program| {
        tries += 1;
        tries <= TRIES && fails(candidate)
    };
    loop {
        let before = size(&best);
        shrink_list(&mut best, |program| &mut program.steps, &mut fails);
        for step in 0..best.steps.len() {
            shrink_list(&mut best, |program| &mut program.steps[step].events, &mut fails);
            shrink_op(&mut best, step, &mut fails);
        }
        shrink_list(&mut best, |program| &mut program.tables, &mut fails);
        simplify_setting(&mut best, &mut fails);
        if size(&best) == before {
            return best;
        }
    }
}

/// What gets smaller.
fn size(program: &Program) -> usize {
    let inside = |op: &Op| match op {
        Op::User(touches) | Op::Loop { body: touches, .. } => touches.len(),
        Op::Edit { edits, .. } => edits.len(),
        _ => 1,
    };
    let steps = program.steps.iter().map(|step| 1 + step.events.len() + inside(&step.op)).sum::<usize>();
    let setting = program.setting;
    let options = [setting.large_kernel, setting.smep, setting.smap];
    steps + program.tables.len() + options.into_iter().filter(|&option| option).count()
}

/// Leaves out parts of one list: halves, then quarters, down to single elements.
fn shrink_list<T: Clone>(
    best: &mut Program,
    list: impl Fn(&mut Program) -> &mut Vec<T>,
    fails: &mut impl FnMut(&Program) -> bool,
) {
    let mut part = list(best).len().div_ceil(2);
    while part > 0 {
        let mut start = 0;
        while start < list(best).len() {
            let mut candidate = best.clone();
            let elements = list(&mut candidate);
            let end = (start + part).min(elements.len());
            elements.drain(start..end);
            if fails(&candidate) {
                *best = candidate;
            } else {
                start = end;
            }
        }
        part /= 2;
    }
}

fn shrink_op(best: &mut Program, step: usize, fails: &mut impl FnMut(&Program) -> bool) {
    fn touches(program: &mut Program, step: usize) -> &mut Vec<Touch> {
        match &mut program.steps[step].op {
            Op::User(touches) | Op::Loop { body: touches, .. } => touches,
            other => unreachable!("{other:?} has no touches"),
        }
    }
    fn edits(program: &mut Program, step: usize) -> &mut Vec<Edit> {
        match &mut program.steps[step].op {
            Op::Edit { edits, .. } => edits,
            other => unreachable!("{other:?} has no edits"),
        }
    }
    match best.steps[step].op {
        Op::User(_) | Op::Loop { .. } => shrink_list(best, |program| touches(program, step), fails),
        Op::Edit { .. } => shrink_list(best, |program| edits(program, step), fails),
        _ => {}
    }
}

/// Turns off what need not be on. Where the tables lie stays as it is.
fn simplify_setting(best: &mut Program, fails: &mut impl FnMut(&Program) -> bool) {
    for option in [
        (|program| &mut program.setting.large_kernel) as fn(&mut Program) -> &mut bool,
        |program| &mut program.setting.smep,
        |program| &mut program.setting.smap,
    ] {
        let mut candidate = best.clone();
        if std::mem::take(option(&mut candidate)) && fails(&candidate) {
            *best = candidate;
        }
    }
}
