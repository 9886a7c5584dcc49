//! Lines to blocks: the text as nested regions, still by name and without memory.

use alloc::vec::Vec;

use super::line::{Kind, Line};
use super::{HIDDEN, MAX_LEVEL, MAX_LINE, MAX_REGIONS, MtreeError, MtreeProblem};

/// A region of the text, by its place in [`Text::nodes`].
pub(super) type NodeId = usize;

/// A line with the lines below it.
pub(super) struct Node<'a> {
    /// Where it is in the text, from 1.
    pub(super) number: usize,
    pub(super) line: Line<'a>,
    pub(super) parent: Option<NodeId>,
    /// In the order in which they are printed.
    pub(super) children: Vec<NodeId>,
}

/// A header and the region under it; address spaces that share a root share a block.
pub(super) struct Block<'a> {
    pub(super) names: Vec<&'a str>,
    pub(super) root: NodeId,
}

/// The whole text.
#[derive(Default)]
pub(super) struct Text<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    /// The blocks `address-space: NAME`.
    pub(super) spaces: Vec<Block<'a>>,
    /// The blocks `memory-region: NAME`.
    pub(super) regions: Vec<Block<'a>>,
}

impl<'a> Text<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, MtreeError> {
        let mut reader = Reader::default();
        let mut last = 1;
        for (line, number) in bytes.split(|&byte| byte == b'\n').zip(1..) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            text_of(line).and_then(|line| reader.read(line, number)).map_err(|problem| problem.at(number))?;
            last = number;
        }
        reader.close(last).map_err(|problem| problem.at(last))?;
        if reader.text.spaces.is_empty() {
            return Err(MtreeProblem::NoAddressSpace.at(last));
        }
        Ok(reader.text)
    }

    /// Where a region starts in its container.
    pub(super) fn offset(&self, id: NodeId) -> u64 {
        let node = &self.nodes[id];
        let base = node.parent.map_or(0, |parent| self.nodes[parent].line.start);
        node.line.start.wrapping_sub(base)
    }
}

fn text_of(line: &[u8]) -> Result<&str, MtreeProblem> {
    if line.len() > MAX_LINE {
        return Err(MtreeProblem::TooLong);
    }
    let text = core::str::from_utf8(line).ok().filter(|text| !text.contains(char::is_control));
    text.ok_or(MtreeProblem::NotText)
}

/// The block being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    Space,
    Region,
}

#[derive(Default)]
struct Reader<'a> {
    text: Text<'a>,
    header: Option<Header>,
    names: Vec<&'a str>,
    root: Option<NodeId>,
    /// The last region read of each level.
    open: Vec<NodeId>,
}

impl<'a> Reader<'a> {
    fn read(&mut self, line: &'a str, number: usize) -> Result<(), MtreeProblem> {
        if line.is_empty() {
            return self.close(number);
        }
        if let Some(name) = line.strip_prefix("address-space: ") {
            // The names of one root stand in a row.
            if self.header != Some(Header::Space) || self.root.is_some() {
                self.close(number)?;
            }
            self.header = Some(Header::Space);
            self.names.push(name);
            return Ok(());
        }
        if let Some(name) = line.strip_prefix("memory-region: ") {
            self.close(number)?;
            self.header = Some(Header::Region);
            self.names.push(name);
            return Ok(());
        }
        if !line.starts_with([' ', '[']) {
            return Err(MtreeProblem::NotMtree);
        }
        let line = Line::parse(line)?;
        if self.header.is_none() {
            return Err(MtreeProblem::NoHeader);
        }
        self.add(line, number)
    }

    /// Ends a block. One without a line has a disabled root that was left out.
    fn close(&mut self, number: usize) -> Result<(), MtreeProblem> {
        let Some(header) = self.header.take() else { return Ok(()) };
        if self.root.is_none() {
            self.push_hidden(number)?;
        }
        let root = self.root.take().expect("a block that is left out has been given a root");
        let names = core::mem::take(&mut self.names);
        self.open.clear();
        match header {
            Header::Space => self.text.spaces.push(Block { names, root }),
            Header::Region => self.text.regions.push(Block { names, root }),
        }
        Ok(())
    }

    fn add(&mut self, line: Line<'a>, number: usize) -> Result<(), MtreeProblem> {
        if line.level > MAX_LEVEL {
            return Err(MtreeProblem::TooDeep { level: line.level });
        }
        self.open.truncate(line.level - 1);
        if self.open.last().is_some_and(|&above| self.text.nodes[above].line.alias.is_some()) {
            // Aliases have no children: this line's container was left out, behind the alias.
            let alias = self.open.pop().filter(|_| !self.open.is_empty());
            self.push_hidden_behind(alias.ok_or(MtreeProblem::ChildOfAlias)?, number)?;
        }
        while self.open.len() < line.level - 1 {
            self.push_hidden(number)?;
        }
        if let (Some(&parent), false) = (self.open.last(), line.wraps) {
            let base = self.text.nodes[parent].line.start;
            if line.start < base {
                return Err(MtreeProblem::BelowContainer { start: line.start, base });
            }
        }
        if self.open.is_empty() && self.header == Some(Header::Region) && self.names != [line.name] {
            return Err(MtreeProblem::OtherName { region: line.name.into() });
        }
        self.push(line, number)
    }

    fn push(&mut self, line: Line<'a>, number: usize) -> Result<(), MtreeProblem> {
        let id = self.text.nodes.len();
        if id >= MAX_REGIONS {
            return Err(MtreeProblem::TooMany);
        }
        let parent = self.open.last().copied();
        match parent {
            Some(parent) => self.text.nodes[parent].children.push(id),
            None if self.root.is_some() => return Err(MtreeProblem::SecondRoot),
            None => self.root = Some(id),
        }
        self.text.nodes.push(Node { number, line, parent, children: Vec::new() });
        self.open.push(id);
        Ok(())
    }

    /// Adds the disabled region that the text left out, behind the last one at its level.
    fn push_hidden(&mut self, number: usize) -> Result<(), MtreeProblem> {
        let parent = self.open.last().map(|&parent| &self.text.nodes[parent]);
        match parent.and_then(|parent| parent.children.last()) {
            Some(&sibling) => self.push_hidden_behind(sibling, number),
            None => {
                let start = parent.map_or(0, |parent| parent.line.start);
                let mut line = hidden(self.open.len() + 1, start, i32::MAX);
                if let (true, Some(Header::Region)) = (self.open.is_empty(), self.header) {
                    line.name = self.names[0];
                }
                self.push(line, number)
            }
        }
    }

    fn push_hidden_behind(&mut self, sibling: NodeId, number: usize) -> Result<(), MtreeProblem> {
        let Line { start, priority, .. } = self.text.nodes[sibling].line;
        self.push(hidden(self.open.len() + 1, start, priority), number)
    }
}

/// A region that is disabled and was left out. Its place is one that sorts where it was; what it shows
/// nobody sees.
fn hidden(level: usize, start: u64, priority: i32) -> Line<'static> {
    Line {
        level,
        start,
        size: (1 << 64) - u128::from(start),
        wraps: false,
        priority,
        kind: Kind::Io,
        nonvolatile: false,
        name: HIDDEN,
        alias: None,
        enabled: false,
        owner: "",
    }
}
