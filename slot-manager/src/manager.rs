//! The listener that keeps a VM's slots in step with an address space.

use std::mem;

use memory_model::{AddrRange, FlatRange, Gpa, MemoryListener, Refusal};

use crate::{Errno, SlotError, SlotExecutor, SlotOp, SlotRegistry, plan, plan_change};

/// Turns the changes of an [`AddressSpace`](memory_model::AddressSpace) into slot operations (QEMU's
/// `KVMMemoryListener`): queues them during a transaction, plans at its end, and carries the plan out wholly
/// or not at all.
///
/// It keeps every slot in its registry, and each slot keeps its memory mapped, as long as the kernel may use
/// it. It does not stop vCPUs: see [`SlotPlan::needs_pause`](crate::SlotPlan::needs_pause).
pub struct SlotManager<E> {
    executor: E,
    registry: SlotRegistry,
    queue: Queue,
    /// An undo failed: the registry shows what stands, which is neither the old view nor the new one.
    torn: bool,
}

/// What a transaction has told so far, both ascending.
#[derive(Default)]
struct Queue {
    gone: Vec<AddrRange<Gpa>>,
    new: Vec<FlatRange>,
}

impl<E: SlotExecutor> SlotManager<E> {
    /// A manager of a VM that has no slots yet.
    pub fn new(executor: E) -> Self {
        Self { executor, registry: SlotRegistry::default(), queue: Queue::default(), torn: false }
    }

    /// The slots as they stand.
    pub fn registry(&self) -> &SlotRegistry {
        &self.registry
    }

    /// Who carries the operations out.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    fn execute(&mut self, ops: &[SlotOp]) -> Result<(), SlotError> {
        for (done, op) in ops.iter().enumerate() {
            if let Err(cause) = self.step(op) {
                return Err(self.undo(&ops[..done], cause));
            }
        }
        Ok(())
    }

    /// One operation, in the registry and in the kernel, or in neither.
    fn step(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        if !self.registry.apply(op) {
            // Only a torn registry gets here: the room is still taken by what could not be undone.
            return Err(SlotError::refused(op, Errno::EEXIST));
        }
        self.executor.execute(op).inspect_err(|_| {
            self.registry.apply(&op.inverse());
        })
    }

    /// Takes back what was done, last first, and goes on where one step fails: the more is as it was, the
    /// better.
    fn undo(&mut self, done: &[SlotOp], cause: SlotError) -> SlotError {
        let mut standing = Vec::new();
        for op in done.iter().rev() {
            if let Err(error) = self.step(&op.inverse()) {
                standing.push((op.clone(), error));
            }
        }
        if standing.is_empty() {
            return cause;
        }
        self.torn = true;
        SlotError::Torn { cause: Box::new(cause), standing }
    }
}

impl<E: SlotExecutor> MemoryListener for SlotManager<E> {
    fn name(&self) -> &str {
        "slots"
    }

    fn wants_nops(&self) -> bool {
        self.torn
    }

    fn begin(&mut self) {
        self.queue = Queue::default();
    }

    fn region_del(&mut self, range: &FlatRange) {
        self.queue.gone.push(range.range);
    }

    fn region_nop(&mut self, range: &FlatRange) {
        // What did not change needs a look only because the slots are not those of the old view.
        self.queue.new.push(range.clone());
    }

    fn region_add(&mut self, range: &FlatRange) {
        self.queue.new.push(range.clone());
    }

    fn commit(&mut self) -> Result<(), Refusal> {
        let Queue { gone, new } = mem::take(&mut self.queue);
        let gone = if self.torn { vec![plan::everything()] } else { gone };
        let plan = plan_change(&self.registry, &gone, &new, &self.executor.limits())?;
        self.execute(&plan.ops)?;
        self.torn = false;
        Ok(())
    }
}
