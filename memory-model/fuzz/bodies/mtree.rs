//! Any bytes as the text of `info mtree`: an error that gives the line, or a tree that renders and prints.

use memory_model::mtree::Mtree;

/// Reads the bytes; panics if something is wrong with what comes of them.
pub fn run(bytes: &[u8]) {
    let mtree = match Mtree::parse(bytes) {
        Ok(mtree) => mtree,
        Err(error) => {
            let lines = bytes.split(|&byte| byte == b'\n').count();
            assert!((1..=lines).contains(&error.line), "{error}: there are {lines} lines");
            return;
        }
    };
    let flat = mtree.flat_text().expect("the parser bounds what is rendered").to_string();
    for block in flat.split_terminator("\n\n") {
        assert_ascending(block);
    }
    // Without owners an alias can mean another region, so only an error may come of it.
    for disabled in [false, true] {
        let _ = Mtree::parse(mtree.text(disabled).to_string().as_bytes());
    }
    let anew =
        Mtree::new(mtree.tree().clone(), mtree.spaces().to_vec()).expect("the roots are the tree's own");
    assert_eq!(anew.flat_text().expect("as above").to_string(), flat);
}

/// The ranges of a view are sorted and do not overlap (rule R16).
fn assert_ascending(block: &str) {
    let mut free = Some(0);
    for line in block.lines() {
        let number = |digits: Option<&str>| u64::from_str_radix(digits?, 16).ok();
        let (Some(first), Some(last)) = (number(line.get(2..18)), number(line.get(19..35))) else { continue };
        if line.get(18..19) == Some("-") {
            assert!(free.is_some_and(|free| free <= first) && first <= last, "{line} in\n{block}");
            free = last.checked_add(1);
        }
    }
}
