//! Replaces atomics with ones of the same size, also constant, so that tables keep their layout. loom's own atomics are stored
//! beside them by address, and made at the first use; at the end of a model they are dropped, and statics have their initial
//! values again.

pub(crate) use std::sync::atomic::Ordering;

/// Orders accesses of several threads, too: see `process_barrier`.
pub(crate) fn compiler_fence(order: Ordering) {
    loom::sync::atomic::fence(order);
}

use crate::record::memory;
use loom::sync::atomic::AtomicU64 as Controlled;
use std::cell::{RefCell, UnsafeCell};
use std::collections::HashMap;
use std::marker::PhantomData;

thread_local! {
    // loom's threads take turns on one thread.
    static BESIDE: RefCell<Beside> = RefCell::default();
}

#[derive(Default)]
struct Beside {
    bound: HashMap<usize, &'static Controlled>,
    /// The bound atomics in the order of their first use, so that a run can be repeated step by step.
    touched: Vec<&'static Controlled>,
    /// Unused atomics of zero, made before any thread starts: other threads could not use one that a thread makes.
    free: Vec<&'static Controlled>,
    made: Vec<*mut Controlled>,
    threads: bool,
}

/// Number of zero atomics that a model may use in its threads.
const POOL: usize = 160;

/// Runs a model in every order of its threads, with so many switches between them that nothing but the order of the
/// operations asks for; how many orders that were. `begin` runs before threads do, and touches what is not zero.
pub(crate) fn every_order(
    preemptions: usize,
    begin: impl Fn() + Send + Sync + 'static,
    model: impl Fn() + Send + Sync + 'static,
) -> usize {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = runs.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    // Steps of one order; the rounds of some models take more than a thousand.
    builder.max_branches = 2_000;
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        BESIDE.with_borrow_mut(|beside| {
            *beside = Beside::default();
            for _ in 0..POOL {
                let made = Box::into_raw(Box::new(Controlled::new(0)));
                beside.made.push(made);
                // SAFETY: freed when the model has ended, after which nothing of it is touched.
                beside.free.push(unsafe { &*made });
            }
        });
        begin();
        BESIDE.with_borrow_mut(|beside| beside.threads = true);
        model();
        for made in BESIDE.take().made {
            // SAFETY: made above or in `bind`, once.
            drop(unsafe { Box::from_raw(made) });
        }
        memory::free_all();
    });
    runs.load(Ordering::Relaxed)
}

/// Sets the only atomic that contains `from` to `to`, before threads start.
pub(crate) fn jump(from: u64, to: u64) {
    let touched = BESIDE.with_borrow(|beside| {
        assert!(!beside.threads, "a jump in a thread");
        beside.touched.clone()
    });
    let found: Vec<_> = touched.into_iter().filter(|one| one.load(Ordering::Relaxed) == from).collect();
    let [one] = found[..] else { panic!("{from:#x} is in {} places", found.len()) };
    one.store(to, Ordering::Release);
}

/// Models the crate's function on x86-64: two loads and stores, which another thread may separate.
macro_rules! add_block_to_own {
    ($struct:ty, $this:expr, $bytes:ident, $blocks:ident, $size:expr) => {{
        let (this, size): (&$struct, usize) = ($this, $size);
        for (word, amount) in [(&this.$bytes, size as u64), (&this.$blocks, 1)] {
            word.store(word.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Release);
        }
    }};
}
pub(crate) use add_block_to_own;

/// Returns loom's atomic for this address, which contains `initial` in memory.
fn bind(address: usize, initial: u64) -> &'static Controlled {
    BESIDE.with_borrow_mut(|beside| {
        if let Some(bound) = beside.bound.get(&address) {
            return *bound;
        }
        let bound = if initial == 0 {
            beside.free.pop().expect("a larger pool")
        } else {
            assert!(!beside.threads, "an atomic of {initial} is first touched in a thread");
            let made = Box::into_raw(Box::new(Controlled::new(initial)));
            beside.made.push(made);
            // SAFETY: as in `every_order`.
            unsafe { &*made }
        };
        beside.bound.insert(address, bound);
        beside.touched.push(bound);
        bound
    })
}

/// Values of an atomic.
pub(crate) trait Word: Copy {
    fn to(self) -> u64;
    fn from(word: u64) -> Self;
}

macro_rules! word {
    ($($name:ident $value:ty),*) => {
        $(
            impl Word for $value {
                fn to(self) -> u64 {
                    self as u64
                }
                fn from(word: u64) -> $value {
                    word as $value
                }
            }
            pub(crate) type $name = Atomic<$value>;
        )*
    };
}

word!(AtomicU8 u8, AtomicU32 u32, AtomicU64 u64, AtomicI64 i64, AtomicUsize usize);

impl Word for bool {
    fn to(self) -> u64 {
        self.into()
    }
    fn from(word: u64) -> bool {
        word != 0
    }
}

pub(crate) type AtomicBool = Atomic<bool>;

impl<T> Word for *mut T {
    fn to(self) -> u64 {
        self.expose_provenance() as u64
    }
    fn from(word: u64) -> *mut T {
        std::ptr::with_exposed_provenance_mut(word as usize)
    }
}

pub(crate) type AtomicPtr<T> = Atomic<*mut T>;

/// An atomic under loom's control, see the module.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct Atomic<W>(UnsafeCell<W>, PhantomData<W>);

// SAFETY: the value in memory is never written.
unsafe impl<W> Sync for Atomic<W> {}
// SAFETY: as above.
unsafe impl<W> Send for Atomic<W> {}

impl<W> Atomic<W> {
    pub(crate) const fn new(value: W) -> Atomic<W> {
        Atomic(UnsafeCell::new(value), PhantomData)
    }
}

impl<W: Word> Atomic<W> {
    fn beside(&self) -> &'static Controlled {
        assert!(!memory::is_freed(self.0.get().addr()), "used after it was freed");
        // SAFETY: never written.
        bind(self.0.get().addr(), unsafe { *self.0.get() }.to())
    }

    pub(crate) fn load(&self, order: Ordering) -> W {
        W::from(self.beside().load(order))
    }

    pub(crate) fn store(&self, value: W, order: Ordering) {
        self.beside().store(value.to(), order)
    }

    pub(crate) fn swap(&self, value: W, order: Ordering) -> W {
        W::from(self.beside().swap(value.to(), order))
    }

    pub(crate) fn compare_exchange(
        &self,
        current: W,
        new: W,
        success: Ordering,
        failure: Ordering,
    ) -> Result<W, W> {
        self.beside().compare_exchange(current.to(), new.to(), success, failure).map(W::from).map_err(W::from)
    }

    pub(crate) fn fetch_add(&self, value: W, order: Ordering) -> W {
        W::from(self.beside().fetch_add(value.to(), order))
    }

    pub(crate) fn fetch_sub(&self, value: W, order: Ordering) -> W {
        W::from(self.beside().fetch_sub(value.to(), order))
    }

    pub(crate) fn fetch_or(&self, value: W, order: Ordering) -> W {
        W::from(self.beside().fetch_or(value.to(), order))
    }

    pub(crate) fn fetch_and(&self, value: W, order: Ordering) -> W {
        W::from(self.beside().fetch_and(value.to(), order))
    }

    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        mut f: impl FnMut(W) -> Option<W>,
    ) -> Result<W, W> {
        self.beside()
            .fetch_update(set, fetch, |word| f(W::from(word)).map(W::to))
            .map(W::from)
            .map_err(W::from)
    }

    pub(crate) fn fetch_max(&self, value: W, order: Ordering) -> W
    where
        W: Ord,
    {
        let more = |now: W| Some(now.max(value));
        match self.fetch_update(order, Ordering::Relaxed, more) {
            Ok(before) | Err(before) => before,
        }
    }
}
