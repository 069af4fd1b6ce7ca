//! Scopes: whose memory it is, by keys and values that the program names.
//!
//! A thread holds the [term](id::ScopeId::term) of the combination that it is in. Each look-up of a stack adds it to the sum that is
//! compared, so a stack in another combination is another one to every cache and to the map of stacks; a record has the number of
//! its combination. A free goes by the id behind the block and costs nothing more.
//!
//! ```text
//! combination   made ──▶ held by handles, guards, futures ──▶ held by none, blocks live ──▶ nothing live: over, its slot is free
//! ```
//!
//! `slot` has the protocol of a slot, `pass` the proof that a combination is over, `table` the names, `entered` the scopes
//! that a thread is in. The memory of its stacks is given back at once then, see `stack_id::life`.
//!
//! Where there is no room for one more combination, or for one more stack in one, the values become `[other]`, which is counted;
//! bytes and blocks stay those of their stacks.

pub(crate) mod entered;
pub(crate) mod future;
pub(crate) mod id;
#[cfg(feature = "tower")]
pub mod layer;
pub(crate) mod names;
pub(crate) mod pass;
pub(crate) mod slot;
pub(crate) mod slots;
pub(crate) mod table;
pub(crate) mod unions;

use crate::record::dropped::{self, Reason};
use crate::record::epoch;
use crate::record::raw_snapshot;
use crate::record::scope::entered::Removed;
use crate::record::scope::id::ScopeId;
use crate::record::scope::names::{Pair, Pairs, shown_key, shown_value};
use crate::record::scope::table::Full;
use crate::record::thread::{self, BUSY, ThreadState};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// One or more keys with values that the program names: whose memory it is.
///
/// A block belongs to the scopes that its thread is in when it is allocated, whichever thread frees it. One that is resized belongs
/// to those of the resize. Live bytes and blocks by scope are among the metrics, and a snapshot has them by stack and scope.
///
/// Values are shown where metrics are, so they should be neither secret nor personal. A value is cut after 64
/// characters; a character that is not printable is replaced by `?`, a backslash by a slash. A key that is empty, is longer than that,
/// or has a colon, `=`, a backslash or a character that is not printable, counts as `?`. A scope has at most 16 keys; more are left out.
///
/// At most 4,096 distinct combinations of keys and values are alive at once. A combination is alive while a `Scope`, a guard or a future
/// has it, or a live block does. Further combinations get `[other]` as the value of each key, which is counted in
/// `heap_dropped_events_total{reason="scopes"}`. Where the limit of heapgauge's own memory is near, a stack that is new in its scopes
/// gets `[other]` too. If there is no room for that either, its blocks are in no scope: `reason="scopes"` counts it where the stack
/// can still be recorded, else `reason="memory"`. No byte is lost.
///
/// Where all combinations are taken, making one more looks for some that are no longer alive. It reads the counts of all stacks, which
/// takes milliseconds, or waits for another thread that does, for at most a quarter of a second.
///
/// Entering does nothing where heapgauge is not the global allocator, and near a thread's end. Scopes are neither for signal
/// handlers nor for an allocator that heapgauge is around: making one allocates, and so may entering one inside another. A forked child
/// goes on in the scopes of the thread that forked; those that other threads had stay taken there.
///
/// # Examples
///
/// ```standalone_crate
/// use heapgauge::Scope;
///
/// #[global_allocator]
/// static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
///
/// fn main() {
///     let acme = Scope::new("tenant", "acme");
///     let cached = acme.in_scope(|| vec![0u8; 1000]);
///     // tenant=acme has 1,000 live bytes.
/// #   drop(cached);
/// }
/// ```
pub struct Scope {
    /// Held, unless it is [`ScopeId::NONE`].
    id: ScopeId,
    term: u64,
}

impl Scope {
    /// Makes a scope of one key.
    ///
    /// # Examples
    ///
    /// ```
    /// let scope = heapgauge::Scope::new("tenant", "acme");
    /// # drop(scope);
    /// ```
    pub fn new(key: &'static str, value: impl AsRef<str>) -> Scope {
        let value = shown_value(value.as_ref());
        interned(&[(shown_key(key), &value)])
    }

    /// Adds a key, or gives it another value.
    ///
    /// # Examples
    ///
    /// ```
    /// let scope = heapgauge::Scope::new("tenant", "acme").with("route", "/search");
    /// # drop(scope);
    /// ```
    #[must_use]
    pub fn with(self, key: &'static str, value: impl AsRef<str>) -> Scope {
        let value = shown_value(value.as_ref());
        let names = table::names(self.id);
        let mut pairs = names.as_ref().map_or_else(Pairs::new, Pairs::of);
        if !pairs.set(shown_key(key), &value) {
            dropped::count(Reason::Scopes);
        }
        interned(pairs.as_slice())
    }

    /// Returns the scopes that this thread is in, as one: to take them along to another thread or task. It has no key where the
    /// thread is in none.
    ///
    /// # Examples
    ///
    /// ```
    /// let scope = heapgauge::Scope::current();
    /// std::thread::spawn(move || scope.in_scope(|| vec![0u8; 100])).join().unwrap();
    /// ```
    pub fn current() -> Scope {
        Scope::of(Scope::current_id())
    }

    /// Enters the scope on this thread until the guard is dropped. Scopes that the thread is in stay, but for the value of a key
    /// that both have, which comes back afterwards. Guards may be dropped in any order.
    ///
    /// An async block must not hold a guard across an `.await`: its task may go on on another thread, and others run on this
    /// one. The compiler refuses that where a task has to be `Send`.
    ///
    /// # Examples
    ///
    /// ```
    /// let (route, tenant) = (heapgauge::Scope::new("route", "/search"), heapgauge::Scope::new("tenant", "acme"));
    /// let _route = route.enter();
    /// let _tenant = tenant.enter();
    /// let block = vec![0u8; 100]; // of route=/search and tenant=acme
    /// # drop(block);
    /// ```
    #[must_use = "the scope is left as soon as the guard is dropped: `let _scope = scope.enter();` keeps it"]
    #[inline]
    pub fn enter(&self) -> ScopeGuard<'_> {
        if self.id.is_none() {
            return ScopeGuard::NONE;
        }
        let Some(state) = thread::idle() else { return self.enter_first() };
        match state.change_scopes_idle(|entered| entered.push_alone(self.id, self.term)) {
            Some(token) => ScopeGuard::new(state, token),
            None => self.enter_beside(state),
        }
    }

    /// Enters the scope as [`enter`](Scope::enter) does, by a guard that keeps it.
    ///
    /// # Examples
    ///
    /// ```
    /// let guard = heapgauge::Scope::new("tenant", "acme").entered();
    /// let block = vec![0u8; 100]; // of tenant=acme
    /// # drop((block, guard));
    /// ```
    #[must_use = "the scope is left as soon as the guard is dropped: `let _scope = scope.entered();` keeps it"]
    pub fn entered(self) -> ScopeGuard<'static> {
        let ScopeGuard { state, token, .. } = *std::mem::ManuallyDrop::new(self.enter());
        ScopeGuard { state, token, held: self.into_id(), not_send: PhantomData }
    }

    /// Calls a function in the scope.
    ///
    /// # Examples
    ///
    /// ```
    /// let scope = heapgauge::Scope::new("job", "reindex");
    /// let index = scope.in_scope(|| vec![0u8; 100]);
    /// # drop(index);
    /// ```
    pub fn in_scope<R>(&self, f: impl FnOnce() -> R) -> R {
        let _guard = self.enter();
        f()
    }

    /// Returns the number of the combination that this thread is in.
    pub(crate) fn current_id() -> ScopeId {
        thread::idle().map_or(ScopeId::NONE, |state| state.change_scopes_idle(|entered| entered.current()))
    }

    /// Returns the combination of the scopes that this thread is in and this one, whose values count where both have a key.
    pub(crate) fn combined_with_current(&self) -> Scope {
        union(Scope::current_id(), self.id)
    }

    /// Enters a scope whose combination with those that the thread is in is known, as by
    /// [`combined_with_current`](Scope::combined_with_current). Touches nothing that threads share.
    #[inline]
    pub(crate) fn enter_combined<'a>(&'a self, combined: &'a Scope) -> ScopeGuard<'a> {
        let Scope { id: both, term, .. } = *combined;
        if !self.id.is_none()
            && let Some(state) = thread::idle()
            && let Some(token) =
                state.change_scopes_idle(|entered| entered.push_combined(self.id, both, term))
        {
            return ScopeGuard::new(state, token);
        }
        let Some(state) = self.state() else { return ScopeGuard::NONE };
        let token = state.change_scopes(|entered| entered.push(self.id, both, false));
        token.flatten().map_or(ScopeGuard::NONE, |token| ScopeGuard::new(state, token))
    }

    /// Returns the state of this thread; `None` where it can have none, and for a scope without a key.
    fn state(&self) -> Option<&'static ThreadState> {
        if self.id.is_none() { None } else { thread::current_or_make() }
    }

    /// Enters the scope in a thread that has no state yet; does nothing in the middle of an event.
    #[cold]
    #[inline(never)]
    fn enter_first(&self) -> ScopeGuard<'_> {
        let Some(state) = self.state().filter(|state| state.flags() & BUSY == 0) else {
            return ScopeGuard::NONE;
        };
        self.enter_beside(state)
    }

    /// Enters the scope beside others, or as the first of the thread, which is not in the middle of an event.
    #[inline(never)]
    fn enter_beside(&self, state: &'static ThreadState) -> ScopeGuard<'_> {
        let entered = state.change_scopes_idle(|entered| {
            let outer = entered.current();
            if outer.is_none() || outer == self.id {
                return Ok(entered.push(self.id, self.id, false));
            }
            let known = unions::find(outer, self.id).filter(|both| slots::hold(*both));
            known.map(|both| push_held(entered, self.id, both)).ok_or(outer)
        });
        match entered {
            Ok(Some(token)) => ScopeGuard::new(state, token),
            Err(outer) => self.enter_slow(state, outer),
            Ok(None) => {
                dropped::count(Reason::Scopes);
                ScopeGuard::NONE
            }
        }
    }

    /// Enters the scope beside others, in a combination that is not remembered.
    #[cold]
    #[inline(never)]
    fn enter_slow(&self, state: &'static ThreadState, outer: ScopeId) -> ScopeGuard<'_> {
        let both = union(outer, self.id).into_id();
        unions::note(outer, self.id, both);
        let token = state.change_scopes(|entered| push_held(entered, self.id, both));
        token.flatten().map_or(ScopeGuard::NONE, |token| ScopeGuard::new(state, token))
    }

    /// Takes a hold over.
    fn of_held(id: ScopeId) -> Scope {
        Scope { id, term: id.term() }
    }

    /// Holds a combination, if it is not over.
    fn of(id: ScopeId) -> Scope {
        Scope::of_held(if slots::hold(id) { id } else { ScopeId::NONE })
    }

    /// Returns the number of the combination, whose hold goes to the caller.
    fn into_id(self) -> ScopeId {
        std::mem::ManuallyDrop::new(self).id
    }
}

impl Clone for Scope {
    fn clone(&self) -> Scope {
        Scope::of(self.id)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        slots::release(self.id);
    }
}

impl fmt::Debug for Scope {
    /// Shows keys and values: `Scope { route: "/search", tenant: "acme" }`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(names) = table::names(self.id) else { return f.write_str("Scope {}") };
        let mut shown = f.debug_struct("Scope");
        names.iter().for_each(|(key, value)| {
            shown.field(key, value);
        });
        shown.finish()
    }
}

/// Pushes a combination that is held for this entry. Where that is the scope itself its holder is enough.
fn push_held(entered: &mut entered::Entered, given: ScopeId, both: ScopeId) -> Option<u32> {
    let is_holder = both != given;
    let token = entered.push(given, both, is_holder);
    if !is_holder || token.is_none() {
        slots::release(both);
    }
    token
}

/// Returns the combination of these keys and values, `[other]` instead of the values where there is no room for it.
fn interned(pairs: &[Pair<'_>]) -> Scope {
    // A signal handler that has interrupted a change of the table would wait for its own thread.
    if !epoch::has_been_asked() || table::is_changing() {
        return Scope::of_held(ScopeId::NONE);
    }
    Scope::of_held(table::intern(pairs).unwrap_or_else(|full| make_room(pairs, full)))
}

/// Makes room for a combination that has found no slot, or returns that of `[other]`.
#[cold]
#[inline(never)]
fn make_room(pairs: &[Pair<'_>], Full { mut is_pass_due }: Full) -> ScopeId {
    let mut passes = 0;
    for _ in 0..MOST_WAITS {
        if pass::is_under_way() {
            std::thread::sleep(WAIT);
        } else if table::free_unrecorded() == 0 {
            if !is_pass_due || passes == MOST_PASSES {
                break;
            }
            raw_snapshot::end_scopes();
            passes += 1;
        }
        match table::intern(pairs) {
            Ok(id) => return id,
            // Those that the pass of another thread has freed may be taken, or it began before enough had no holder.
            Err(full) => is_pass_due = full.is_pass_due,
        }
    }
    table::intern_other(pairs)
}

/// Time between two looks at a pass of another thread, which soon frees slots.
const WAIT: Duration = Duration::from_micros(100);
/// Looks after which it is not waited for any longer.
const MOST_WAITS: u32 = 2_500;
/// Passes of one thread for one combination: where the traces are cleared meanwhile, a pass is in vain.
const MOST_PASSES: u32 = 3;

/// Returns the combination of two, where the values of the inner one count for keys that both have.
fn union(outer: ScopeId, inner: ScopeId) -> Scope {
    let (outer, inner) = (table::names(outer), table::names(inner));
    let mut pairs = outer.as_ref().map_or_else(Pairs::new, Pairs::of);
    for (key, value) in inner.iter().flat_map(|names| names.iter()) {
        if !pairs.set(key, value) {
            dropped::count(Reason::Scopes);
        }
    }
    interned(pairs.as_slice())
}

/// Leaves the scope of a token on the calling thread, whose state this is.
fn leave(state: &ThreadState, token: u32) {
    if let Some(Removed::Before(at)) = state.change_scopes(|entered| entered.remove(token)) {
        leave_slow(state, at);
    }
}

/// Makes the combinations from this place on anew: a scope before them was left.
#[cold]
#[inline(never)]
fn leave_slow(state: &ThreadState, at: usize) {
    for at in at.. {
        let found = state.change_scopes(|entered| entered.get(at).map(|entry| (entry, entered.before(at))));
        let Some((entry, outer)) = found.flatten() else { return };
        // Beside the table, which is not to be locked in the middle of an event.
        let both = union(outer, entry.given).into_id();
        let is_holder = both != entry.given;
        let is_replaced =
            state.change_scopes(|entered| entered.replace(at, entry, both, is_holder)).unwrap_or(false);
        if !is_holder || !is_replaced {
            slots::release(both);
        }
    }
}

/// Guard of [`Scope::enter`]: while it lives, this thread is in the scope.
///
/// # Examples
///
/// ```
/// struct Request<'a> {
///     _scope: heapgauge::ScopeGuard<'a>,
/// }
///
/// let tenant = heapgauge::Scope::new("tenant", "acme");
/// let request = Request { _scope: tenant.enter() };
/// # drop(request);
/// ```
#[must_use = "the scope is left as soon as the guard is dropped: `let _scope = scope.enter();` keeps it"]
pub struct ScopeGuard<'a> {
    /// State of the thread that has entered it; `None` where there was nothing to enter.
    state: Option<&'static ThreadState>,
    token: u32,
    /// The scope, if the guard keeps it.
    held: ScopeId,
    /// It belongs to the thread that made it.
    not_send: PhantomData<(&'a Scope, *const ())>,
}

impl<'a> ScopeGuard<'a> {
    const NONE: ScopeGuard<'a> =
        ScopeGuard { state: None, token: 0, held: ScopeId::NONE, not_send: PhantomData };

    fn new(state: &'static ThreadState, token: u32) -> ScopeGuard<'a> {
        ScopeGuard { state: Some(state), token, held: ScopeId::NONE, not_send: PhantomData }
    }
}

impl Drop for ScopeGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        let Some(entered) = self.state else { return slots::release(self.held) };
        let state = thread::idle().filter(|state| std::ptr::eq(*state, entered));
        let popped = state.and_then(|state| state.change_scopes_idle(|entered| entered.pop(self.token)));
        if popped != Some(ScopeId::NONE) || !self.held.is_none() {
            self.leave_slow(entered, popped);
        }
    }
}

impl ScopeGuard<'_> {
    /// Leaves the scope if that has not been done, and releases all that was held for it.
    #[inline(never)]
    fn leave_slow(&self, entered: &'static ThreadState, popped: Option<ScopeId>) {
        match popped {
            Some(both) => slots::release(both),
            // Near its end the thread has given its state away.
            None if thread::current().is_some_and(|state| std::ptr::eq(state, entered)) => {
                leave(entered, self.token);
            }
            None => {}
        }
        slots::release(self.held);
    }
}

impl fmt::Debug for ScopeGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScopeGuard")
    }
}
