//! Where in a manifest's text something stands.

use toml::de::{DeTable, DeValue};

use crate::GuestError;

/// Something wrong with a manifest, and the keys that lead there.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Keys, and places in lists from 0 on, with points between: `region.2.gpa`.
    pub(crate) path: String,
    /// Which part of it.
    pub(crate) what: String,
    /// What is wrong.
    pub(crate) why: String,
}

impl Wrong {
    pub(crate) fn new(path: impl Into<String>, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { path: path.into(), what: what.into(), why: why.into() }
    }

    /// The same as an error, with its place if there is a text.
    pub(crate) fn within(self, text: Option<&str>) -> GuestError {
        let place = text.and_then(|text| of(text, &self.path));
        GuestError::Manifest { place: place.into(), what: self.what, why: self.why }
    }
}

/// Line and column of the value to which the path leads, as far as it does.
pub(crate) fn of(text: &str, path: &str) -> Option<(usize, usize)> {
    offset(text, path).map(|offset| position(text, offset))
}

/// Line and column, from 1, of a byte offset.
pub(crate) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn offset(text: &str, path: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let (mut found, mut table) = (None, Some(table.get_ref()));
    let mut list = None;
    for key in path.split('.') {
        let next = match (table, list) {
            (Some(table), _) => table.iter().find(|(name, _)| *name.get_ref() == key).map(|(_, value)| value),
            (None, Some(list)) => key.parse().ok().and_then(|index: usize| <[_]>::get(list, index)),
            (None, None) => None,
        };
        let Some(next) = next else { break };
        found = Some(next.span().start);
        table = next.get_ref().as_table();
        list = match next.get_ref() {
            DeValue::Array(list) => Some(&list[..]),
            _ => None,
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_value_or_as_far_as_there_is_one() {
        let text = "summary = 'x'\n[[region]]\nname = 'a'\n[[region]]\nname = 'b'\ngpa = 0x1000\n";
        let at = |path| of(text, path);
        assert_eq!(at("region.1.gpa"), Some((6, 7)));
        assert_eq!(at("region.0.gpa"), Some((2, 1)));
        assert_eq!(at("summary"), Some((1, 11)));
        assert_eq!(at("expect.pages"), None);
    }
}
