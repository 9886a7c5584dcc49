//! What the syntax of a manifest cannot say.

use memory_model::{AddrRange, Gpa, PageSize};

use super::{
    BootSpec, KindSpec, MAX_EXPECTED, MAX_GPA, MAX_MEMORY, MAX_PAGES, MAX_TIME_MS, MAX_VCPUS, Manifest,
    MapSpec, RegionSpec,
};
use crate::GuestError;

impl Manifest {
    /// Whether it asks for what a file that is started so cannot have.
    pub(crate) fn check_boot(&self, boot: BootSpec) -> Result<(), GuestError> {
        let wrong =
            |what: &str, why: &str| Err(GuestError::Manifest { what: what.to_owned(), why: why.to_owned() });
        if let Some(asked) = self.machine.boot.filter(|&asked| asked != boot) {
            return wrong("machine.boot", &format!("`{}` needs {}", asked.word(), asked.needs()));
        }
        if boot == BootSpec::Long && self.machine.vcpus > 1 {
            return wrong("machine.vcpus", "a guest booted by `long` has one: none starts the others");
        }
        let long_alone = [("map", self.maps.is_empty()), ("handlers", self.handlers.is_empty())];
        match long_alone.into_iter().find(|(_, absent)| boot != BootSpec::Long && !absent) {
            Some((what, _)) => wrong(what, &format!("not for a guest booted by `{}`", boot.word())),
            None => Ok(()),
        }
    }

    /// All that does not depend on the file.
    pub(crate) fn check(&self) -> Result<(), GuestError> {
        let wrong = |what: &str, why: String| GuestError::Manifest { what: what.to_owned(), why };
        if !matches!(self.machine.ring, 0 | 3) {
            return Err(wrong("machine.ring", format!("{} is neither 0 nor 3", self.machine.ring)));
        }
        if !(1..=MAX_VCPUS).contains(&self.machine.vcpus) {
            let vcpus = self.machine.vcpus;
            return Err(wrong("machine.vcpus", format!("{vcpus} is not within 1 to {MAX_VCPUS}")));
        }
        if !(1..=MAX_TIME_MS).contains(&self.budget.ms) {
            return Err(wrong("budget.ms", format!("{} is not within 1 to {MAX_TIME_MS}", self.budget.ms)));
        }
        self.check_regions()?;
        for map in &self.maps {
            map.check()?;
        }
        for pages in &self.expect.pages {
            if !(1..=MAX_EXPECTED).contains(&pages.count) {
                return Err(wrong(
                    "expect.pages.count",
                    format!("{} is not within 1 to {MAX_EXPECTED}", pages.count),
                ));
            }
        }
        for same in &self.expect.same_page {
            if !(1..=MAX_EXPECTED).contains(&same.count) {
                return Err(wrong(
                    "expect.same_page.count",
                    format!("{} is not within 1 to {MAX_EXPECTED}", same.count),
                ));
            }
        }
        for access in self.expect.mmio.iter().flatten() {
            if !(1..=8).contains(&access.size) {
                return Err(wrong("expect.mmio.size", format!("{} is not within 1 to 8", access.size)));
            }
        }
        Ok(())
    }

    fn check_regions(&self) -> Result<(), GuestError> {
        let mut all: Vec<(AddrRange<Gpa>, RegionSpec)> = Vec::new();
        let mut memory = 0u64;
        for region in std::iter::once(self.main_ram()).chain(self.regions.iter().cloned()) {
            let wrong = |why: String| GuestError::Manifest { what: format!("region `{}`", region.name), why };
            let range = region.check(&all)?;
            if matches!(region.kind, KindSpec::Ram | KindSpec::Rom) {
                memory = memory.saturating_add(region.size.0);
                if memory > MAX_MEMORY {
                    return Err(wrong(format!("more than {MAX_MEMORY:#x} bytes of memory in all")));
                }
            }
            let tie =
                all.iter().find(|(other, spec)| other.overlaps(range) && spec.priority == region.priority);
            if let Some((other, spec)) = tie {
                return Err(wrong(format!(
                    "{range} overlaps region `{}` at {other} with the same priority {}",
                    spec.name, spec.priority
                )));
            }
            all.push((range, region));
        }
        Ok(())
    }
}

impl RegionSpec {
    /// Checks the region by itself and against those named before it; gives its range.
    fn check(&self, earlier: &[(AddrRange<Gpa>, Self)]) -> Result<AddrRange<Gpa>, GuestError> {
        let wrong = |why: String| GuestError::Manifest { what: format!("region `{}`", self.name), why };
        let named = |name: &str| earlier.iter().any(|(_, other)| other.name == name);
        if named(&self.name) {
            return Err(wrong("a second region of this name".to_owned()));
        }
        check_aligned("gpa", self.gpa.0, PageSize::Size4K).map_err(wrong)?;
        check_aligned("size", self.size.0, PageSize::Size4K).map_err(wrong)?;
        let range =
            AddrRange::new(Gpa(self.gpa.0), self.size.0.into()).filter(|range| range.last().0 < MAX_GPA);
        let Some(range) = range else {
            return Err(wrong(format!(
                "{:#x} bytes at {:#x} are empty or reach past {MAX_GPA:#x}",
                self.size.0, self.gpa.0
            )));
        };
        let key = |set: bool, kind: KindSpec, key: &str| match (set, self.kind == kind) {
            (true, false) => Err(wrong(format!("`{key}` is not for this kind"))),
            _ => Ok(()),
        };
        key(self.value.is_some(), KindSpec::Mmio, "value")?;
        key(self.target.is_some(), KindSpec::Alias, "target")?;
        key(self.offset.is_some(), KindSpec::Alias, "offset")?;
        if self.kind == KindSpec::Alias {
            check_aligned("offset", self.offset.map_or(0, |offset| offset.0), PageSize::Size4K)
                .map_err(wrong)?;
            match &self.target {
                None => return Err(wrong("an alias needs a `target`".to_owned())),
                Some(target) if !named(target) => {
                    return Err(wrong(format!("no region `{target}` before it")));
                }
                Some(_) => {}
            }
        }
        Ok(range)
    }
}

impl MapSpec {
    fn check(&self) -> Result<(), GuestError> {
        let wrong = |why: String| GuestError::Manifest { what: format!("map of {:#x}", self.gva.0), why };
        for (key, value) in [("gva", self.gva.0), ("gpa", self.gpa.0), ("size", self.size.0)] {
            check_aligned(key, value, self.page.0).map_err(wrong)?;
        }
        let pages = self.size.0 >> self.page.0.shift();
        if !(1..=MAX_PAGES).contains(&pages) {
            return Err(wrong(format!("{pages} pages are not within 1 to {MAX_PAGES}")));
        }
        for (key, first) in [("gva", self.gva.0), ("gpa", self.gpa.0)] {
            if AddrRange::new(Gpa(first), self.size.0.into()).is_none() {
                return Err(wrong(format!("{:#x} bytes from {key} {first:#x} wrap around", self.size.0)));
            }
        }
        Ok(())
    }
}

fn check_aligned(key: &str, value: u64, size: PageSize) -> Result<(), String> {
    if value.is_multiple_of(size.bytes()) {
        Ok(())
    } else {
        Err(format!("{key} {value:#x} is not {size} aligned"))
    }
}
