//! What tests need of a host that not each host has.

use std::sync::OnceLock;

use ept::live::{KvmModule, Means, Pagemap, Trace};
use kvm_ioctls::Kvm;
use memory_model::{Hva, PageSize, Pages, RamBlock, RamOptions};
use slot_manager::Capability;
use vcpu::KvmVm;
use vcpu::kvm::{KvmHost, live_kernel};

use crate::guest_memfd::shared_memfd;
use crate::uffd::{Mode, Uffd};

/// Something that a host may lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// `/dev/kvm`.
    Kvm,
    /// That, and the kernel's memory, to see KVM's tables.
    Live,
    /// The kernel's memory by that means, whether or not it is the first choice.
    Means(Means),
    /// Transparent huge pages for memory that asks for them, and that there are any left.
    HugePages,
    /// KVM's trace events.
    Events,
    /// Those of faults.
    FaultEvents,
    /// userfaultfd, with its mode.
    Userfaults(Mode),
    /// Something that KVM may lack.
    Capability(Capability),
    /// A guest_memfd that this process can map.
    GuestMemfd,
}

/// A test, and all that it needs.
pub struct Test {
    pub name: &'static str,
    pub needs: &'static [Need],
    pub act: fn(),
}

/// Those of a module.
pub type Tests = &'static [Test];

/// The tests of a module: what they need, and the functions.
macro_rules! tests {
    ($($needs:expr; $($test:ident),* $(,)?);* $(;)?) => {
        &[$($(crate::need::Test {
            name: concat!(module_path!(), "::", stringify!($test)),
            needs: $needs,
            act: $test,
        }),*),*]
    };
}

impl Need {
    /// Whether whoever runs the tests wants a failure where it is missing.
    pub fn is_required(self) -> bool {
        let name = match self {
            Self::Kvm => "kvm",
            Self::Live => "live",
            _ => return false,
        };
        std::env::var("MEMVIRT_REQUIRE").is_ok_and(|names| names.split(',').any(|required| required == name))
    }

    /// Why it is not to be had here.
    pub fn missing(self) -> Option<String> {
        static EVENTS: OnceLock<Option<String>> = OnceLock::new();
        match self {
            Self::Kvm => KvmHost::probe().err().map(|why| why.to_string()),
            Self::Live => Self::Kvm.missing().or(live_kernel().err().map(str::to_owned)),
            Self::Means(means) => crate::means::kernel(means).err().map(str::to_owned),
            Self::HugePages => {
                let large = PageSize::Size2M.bytes();
                let options = RamOptions { pages: Pages::Thp, ..RamOptions::default() };
                let block = RamBlock::create("probe", large, options).expect("memory for a page");
                block.write(0, &[1]).expect("its first byte");
                let last =
                    Pagemap::of_this_process().and_then(|map| map.page(Hva(block.hva().0 + large - 1)));
                let is_there = last.is_ok_and(|page| page.hpa().is_some());
                (!is_there).then(|| "this host gives no transparent huge page".to_owned())
            }
            Self::Events => EVENTS.get_or_init(|| Trace::start().err().map(|why| why.to_string())).clone(),
            Self::FaultEvents => Self::Events.missing().or_else(|| {
                let is_pvm = matches!(KvmModule::of_this_host(), Some((KvmModule::Pvm, _)));
                is_pvm.then(|| "kvm_pvm has no trace event of faults".to_owned())
            }),
            Self::Userfaults(mode) => {
                let block = match mode {
                    Mode::Minor => RamBlock::memfd("probe", 0x1000),
                    _ => RamBlock::anonymous("probe", 0x1000),
                };
                let block = block.expect("memory for a page");
                let watched = Uffd::watch(block.hva(), block.size(), mode);
                watched.err().map(|why| format!("userfaultfd, {mode:?}: {why}"))
            }
            Self::Capability(capability) => {
                let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).map_err(|why| why.to_string());
                vm.and_then(|vm| capability.require(&vm).map_err(|why| why.to_string())).err()
            }
            Self::GuestMemfd => {
                let made = KvmVm::new().map_err(|why| why.to_string()).and_then(|vm| {
                    shared_memfd(&vm).map_err(|why| format!("a guest_memfd that can be mapped: {why}"))
                });
                made.err()
            }
        }
    }
}
