//! One line of the text: a region with all that is printed of it.
//!
//! ```text
//! [DETECTED OVERFLOW!]   START-END (prio N, TYPE): NAME [disabled] owner:{dev id=rp0}
//!   START-END (prio N, TYPE): alias NAME @TARGET FIRST-LAST [disabled]
//! ```

use super::{MtreeProblem, WRAPS};

/// What `(prio N, TYPE)` says, without the prefix `nv-`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Io,
    Ram,
    Rom,
    RomDevice,
    RamDevice,
}

/// The word of each kind.
const KINDS: [(Kind, &str); 5] = [
    (Kind::Io, "i/o"),
    (Kind::Ram, "ram"),
    (Kind::Rom, "rom"),
    (Kind::RomDevice, "romd"),
    (Kind::RamDevice, "ramd"),
];

impl Kind {
    pub(super) fn word(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }

    fn of_word(word: &str) -> Option<Self> {
        KINDS.iter().find(|(_, known)| *known == word).map(|(kind, _)| *kind)
    }
}

/// The region an alias shows, by name, and where in it the alias begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Target<'a> {
    pub(super) name: &'a str,
    pub(super) offset: u64,
}

/// A region as one line prints it.
#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    /// The root of a block is at level 1.
    pub(super) level: usize,
    /// Where it starts in its block.
    pub(super) start: u64,
    /// Bytes, 1 to 2^64.
    pub(super) size: u128,
    /// The address wrapped around: `start` may lie below the container's.
    pub(super) wraps: bool,
    pub(super) priority: i32,
    pub(super) kind: Kind,
    pub(super) nonvolatile: bool,
    pub(super) name: &'a str,
    pub(super) alias: Option<Target<'a>>,
    pub(super) enabled: bool,
    /// The words of `owner:{..}`, `parent:{..}` and `orphan`, as they stand.
    pub(super) owner: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, MtreeProblem> {
        let mut text = text;
        let mut wraps = false;
        // A line left out leaves its warning before the next one.
        while let Some(rest) = text.strip_prefix(WRAPS) {
            (wraps, text) = (true, rest);
        }
        let unindented = text.trim_start_matches(' ');
        let spaces = text.len() - unindented.len();
        if spaces == 0 || spaces % 2 == 1 {
            return Err(MtreeProblem::Indent { spaces });
        }
        let (range, rest) = unindented.split_once(" (prio ").ok_or(MtreeProblem::NotARegion)?;
        let (start, last) = parse_range(range)?;
        let (priority, rest) = rest.split_once(", ").ok_or(MtreeProblem::NotARegion)?;
        let priority = priority.parse().map_err(|_| MtreeProblem::Priority { found: priority.into() })?;
        let (word, rest) = rest.split_once("): ").ok_or(MtreeProblem::NotARegion)?;
        let (nonvolatile, kind) = word.strip_prefix("nv-").map_or((false, word), |kind| (true, kind));
        let kind = Kind::of_word(kind).ok_or_else(|| MtreeProblem::Kind { found: word.into() })?;
        let (rest, owner) = split_owner(rest);
        let (rest, enabled) = rest.strip_suffix(" [disabled]").map_or((rest, true), |rest| (rest, false));
        let size = size_of(start, last, wraps)?;
        let (name, alias) = match rest.strip_prefix("alias ") {
            Some(rest) => parse_alias(rest, size).map(|(name, target)| (name, Some(target)))?,
            None => (rest, None),
        };
        let level = spaces / 2;
        Ok(Self { level, start, size, wraps, priority, kind, nonvolatile, name, alias, enabled, owner })
    }
}

/// `START-END`, 16 hex digits each.
fn parse_range(text: &str) -> Result<(u64, u64), MtreeProblem> {
    let number = |text: &str| {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    let both = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
    both.ok_or_else(|| MtreeProblem::Range { found: text.into() })
}

fn size_of(first: u64, last: u64, wraps: bool) -> Result<u128, MtreeProblem> {
    if last < first && !wraps {
        return Err(MtreeProblem::Backwards { first, last });
    }
    Ok(u128::from(last.wrapping_sub(first)) + 1)
}

/// `NAME @TARGET FIRST-LAST`. Both names may hold spaces.
fn parse_alias(text: &str, size: u128) -> Result<(&str, Target<'_>), MtreeProblem> {
    let (names, range) = text.rsplit_once(' ').ok_or(MtreeProblem::NotAnAlias)?;
    let (name, target) = names.split_once(" @").ok_or(MtreeProblem::NotAnAlias)?;
    let (offset, last) = parse_range(range)?;
    let shown = size_of(offset, last, true)?;
    if shown != size {
        return Err(MtreeProblem::AliasSize { size, shown });
    }
    Ok((name, Target { name: target, offset }))
}

/// Cuts the words about owners off the end of a line.
fn split_owner(line: &str) -> (&str, &str) {
    let mut end = line.strip_suffix(" orphan").map_or(line.len(), str::len);
    for word in [" parent:{", " owner:{"] {
        match line[..end].rfind(word) {
            Some(start) if line[..end].ends_with('}') => end = start,
            _ => {}
        }
    }
    (&line[..end], line[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn every_part_of_a_line_is_read() {
        let line = Line::parse(
            "    00000000000a0000-00000000000bffff (prio -1, nv-ram): alias bus master @pc ram #1 \
             0000000000010000-000000000002ffff [disabled] owner:{dev id=rp0} parent:{obj path=/a b}",
        )
        .unwrap();
        assert_eq!((line.level, line.start, line.size), (2, 0xa_0000, 0x2_0000));
        assert_eq!((line.priority, line.kind, line.nonvolatile), (-1, Kind::Ram, true));
        assert_eq!((line.name, line.enabled), ("bus master", false));
        assert_eq!(line.alias, Some(Target { name: "pc ram #1", offset: 0x1_0000 }));
        assert_eq!(line.owner, "owner:{dev id=rp0} parent:{obj path=/a b}");
        let line = Line::parse("  0000000000000000-ffffffffffffffff (prio 4096, romd): x orphan").unwrap();
        assert_eq!((line.level, line.size, line.kind), (1, 1 << 64, Kind::RomDevice));
        assert_eq!((line.name, line.enabled, line.owner), ("x", true, "orphan"));
    }

    #[test]
    fn a_wrapped_address_needs_its_warning() {
        let line = "  ffffffffffffff00-00000000000000ff (prio 0, i/o): x";
        let error = Line::parse(line).unwrap_err();
        assert_eq!(error.to_string(), "the range 0xffffffffffffff00-0xff ends before it starts");
        let warned = [WRAPS, line].concat();
        let line = Line::parse(&warned).unwrap();
        assert_eq!((line.wraps, line.start, line.size), (true, 0xffff_ffff_ffff_ff00, 0x200));
    }

    #[test]
    fn what_is_no_region_is_refused_with_a_reason() {
        let cases = [
            ("   0000000000000000-0000000000000fff (prio 0, i/o): x", "3 spaces"),
            ("0000000000000000-0000000000000fff (prio 0, i/o): x", "0 spaces"),
            ("  garbage", "START-END (prio N, TYPE): NAME"),
            ("  0-fff (prio 0, i/o): x", "`0-fff` is not a range"),
            ("  +000000000000000-0000000000000fff (prio 0, i/o): x", "is not a range"),
            ("  0000000000000000-0000000000000fff (prio high, i/o): x", "`high` is not a priority"),
            (
                "  0000000000000000-0000000000000fff (prio 2147483648, i/o): x",
                "`2147483648` is not a priority",
            ),
            ("  0000000000000000-0000000000000fff (prio 0, disk): x", "`disk` is no type"),
            ("  0000000000000000-0000000000000fff (prio 0, nv-): x", "`nv-` is no type"),
            ("  0000000000000000-0000000000000fff (prio 0, i/o)", "START-END (prio N, TYPE): NAME"),
            ("  0000000000000000-0000000000000fff (prio 0, ram): alias x", "alias NAME @TARGET FIRST-LAST"),
            (
                "  0000000000000000-0000000000000fff (prio 0, ram): alias x @y 0000000000000000-0000000000000ffe",
                "0x1000 bytes shows 0xfff",
            ),
        ];
        for (line, says) in cases {
            let error = Line::parse(line).unwrap_err().to_string();
            assert!(error.contains(says), "{line:?}: {error:?} does not say {says:?}");
        }
    }
}
