//! Builds a [`Profile`] from a raw snapshot: allocated and freed counts of each stack, by address; and differences.
//!
//! Any thread may use it. Taking a profile copies counters and stops no thread; naming its stacks takes the time.
#![forbid(unsafe_code)]

use crate::analyze::merge_ids::{self, StackKey};
use crate::analyze::symbols::{self, Unnamed};
use crate::base::error::Error;
use crate::record::control;
use crate::record::raw_snapshot::{self, Addresses, Counts, RawSnapshot, RawStack, ScopeNames};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
#[cfg(test)]
use {
    crate::analyze::frame::Frame, crate::analyze::symbols::Placed, crate::base::random_input::Random,
    crate::record::raw_snapshot::ScopeId,
};

/// Selects one of a stack's four counts. Bytes are requested bytes, blocks are allocations.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{Profile, ProfileValue};
///
/// let blocks = Profile::take()?.to_folded(ProfileValue::LiveBlocks);
/// # drop(blocks);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileValue {
    /// Blocks ever allocated; pprof's `alloc_objects`.
    AllocatedBlocks,
    /// Bytes ever allocated; pprof's `alloc_space`.
    AllocatedBytes,
    /// Live blocks; pprof's `inuse_objects`.
    LiveBlocks,
    /// Bytes of live blocks; pprof's `inuse_space`.
    LiveBytes,
}

impl ProfileValue {
    /// All four counts, in the order Go writes them.
    pub(crate) const ALL: [ProfileValue; 4] = [
        ProfileValue::AllocatedBlocks,
        ProfileValue::AllocatedBytes,
        ProfileValue::LiveBlocks,
        ProfileValue::LiveBytes,
    ];

    /// Returns the selected count. Signed, because a difference of live values may be below zero.
    pub(crate) fn of(self, counts: &Counts) -> i64 {
        let Counts { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks } = *counts;
        match self {
            ProfileValue::AllocatedBlocks => allocated_blocks as i64,
            ProfileValue::AllocatedBytes => allocated_bytes as i64,
            ProfileValue::LiveBlocks => allocated_blocks.wrapping_sub(freed_blocks) as i64,
            ProfileValue::LiveBytes => allocated_bytes.wrapping_sub(freed_bytes) as i64,
        }
    }
}

/// Allocated and live counts of every stack, the data behind pprof files and flame graphs.
///
/// It covers the same memory as the `heap_*` metrics, since the program began or since
/// [`clear_traces`](crate::clear_traces), and never changes. A stack begins with the frame of its site and shows
/// as many frames as a traceback does. Holds about 130 bytes a stack.
///
/// # Examples
///
/// A profile of the allocations during some work, for `go tool pprof`:
///
/// ```standalone_crate
/// # #[cfg(feature = "pprof")]
/// # {
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use heapgauge::{Profile, ProfileValue};
///
/// let before = Profile::take()?;
/// let kept = vec![1u8; 1 << 20];
/// let during = Profile::take()?.since(&before);
/// # let path = std::env::temp_dir().join(format!("heapgauge-during-{}.pb.gz", std::process::id()));
/// std::fs::write(&path, during.to_pprof(ProfileValue::LiveBytes))?;
/// # assert_eq!(std::fs::read(&path)?[..2], [0x1f, 0x8b]);
/// # std::fs::remove_file(&path)?;
/// # drop(kept);
/// # Ok(())
/// # }
/// # main().unwrap()
/// # }
/// ```
#[derive(Clone)]
pub struct Profile {
    taken: Instant,
    epoch: u32,
    /// Time of the profile; of a difference, the time at which it begins.
    pub(crate) taken_at: SystemTime,
    /// Duration of a difference.
    pub(crate) over: Option<Duration>,
    pub(crate) traceback_limit: usize,
    /// Average bytes between samples; 0: every allocation is recorded.
    pub(crate) sample_interval_bytes: u64,
    /// Stacks, each once, none with zeros alone.
    pub(crate) stacks: Vec<RawStack>,
    /// Return addresses of the stacks, and of others: a difference shares them.
    pub(crate) addresses: Arc<Addresses>,
    scopes: Arc<ScopeNames>,
}

impl Profile {
    /// Takes a profile of the program now, with every name final.
    ///
    /// Names all stacks that ever allocated, not only those that hold memory: the first time up to some seconds in
    /// a large program. Later ones with 10,000 stacks take some milliseconds.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{Profile, ProfileValue};
    ///
    /// let kept = vec![1u8; 12_345];
    /// let folded = Profile::take()?.to_folded(ProfileValue::LiveBytes);
    /// let values = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1);
    /// assert!(values.map(|value| value.parse::<u64>().unwrap()).any(|value| value >= 12_345));
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If tracking is off.
    pub fn take() -> Result<Profile, Error> {
        let _own = control::internal();
        let profile = Profile::unnamed()?;
        symbols::global().resolve(&mut profile.without_names().into_iter().rev(), Duration::MAX);
        Ok(profile)
    }

    /// Returns the allocations, and the change of live memory, since `earlier` was taken.
    ///
    /// Stacks on which nothing happened in between are left out. Where [`clear_traces`](crate::clear_traces) came
    /// in between, only the counts since then are there.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{Profile, ProfileValue};
    ///
    /// let before = Profile::take()?;
    /// let kept = vec![1u8; 12_345];
    /// let during = Profile::take()?.since(&before);
    /// assert!(during.to_folded(ProfileValue::LiveBytes).ends_with(" 12345\n"));
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn since(&self, earlier: &Profile) -> Profile {
        let _own = control::internal();
        let same_epoch = self.epoch == earlier.epoch;
        let before: HashMap<StackKey<'_>, Counts> = earlier
            .stacks
            .iter()
            .filter(|_| same_epoch)
            .map(|stack| (merge_ids::key(stack, &earlier.addresses), stack.counts))
            .collect();
        let mut stacks = Vec::new();
        for stack in &self.stacks {
            let before = before.get(&merge_ids::key(stack, &self.addresses)).copied().unwrap_or_default();
            // All four only ever grow, but where a stack has died in between, and was met again.
            let counts = Counts {
                allocated_bytes: stack.counts.allocated_bytes.saturating_sub(before.allocated_bytes),
                allocated_blocks: stack.counts.allocated_blocks.saturating_sub(before.allocated_blocks),
                freed_bytes: stack.counts.freed_bytes.saturating_sub(before.freed_bytes),
                freed_blocks: stack.counts.freed_blocks.saturating_sub(before.freed_blocks),
            };
            if counts != Counts::default() {
                stacks.push(RawStack { counts, ..*stack });
            }
        }
        Profile {
            taken_at: earlier.taken_at,
            over: Some(self.taken.saturating_duration_since(earlier.taken)),
            stacks,
            addresses: self.addresses.clone(),
            scopes: self.scopes.clone(),
            ..*self
        }
    }

    /// Takes a profile now and names nothing.
    pub(crate) fn unnamed() -> Result<Profile, Error> {
        let _own = control::internal();
        Profile::of(raw_snapshot::take())
    }

    /// Returns the profile of a raw snapshot. It names nothing.
    pub(crate) fn of(raw: RawSnapshot) -> Result<Profile, Error> {
        if !raw.tracking {
            return Err(Error::tracking_off(format_args!("profile: {}", control::off_reason())));
        }
        Ok(Profile {
            taken: raw.taken,
            epoch: raw.epoch,
            taken_at: raw.taken_at,
            over: None,
            traceback_limit: raw.traceback_limit,
            sample_interval_bytes: raw.sample_interval_bytes,
            stacks: merge_ids::merge_ids(raw.stacks, &raw.addresses),
            addresses: raw.addresses.into(),
            scopes: raw.scopes.into(),
        })
    }

    /// Returns the stacks whose names are not final; those that hold or have allocated most last.
    pub(crate) fn without_names(&self) -> Vec<Unnamed> {
        let symbols = symbols::global();
        let mut stacks: Vec<&RawStack> =
            self.stacks.iter().filter(|stack| !symbols.is_named(&self.addresses(stack))).collect();
        stacks.sort_by_key(|stack| (stack.counts.live_bytes(), stack.counts.allocated_bytes));
        let unnamed = |stack: &RawStack| Unnamed { id: stack.id, addresses: self.addresses(stack).into() };
        stacks.into_iter().map(unnamed).collect()
    }

    /// Returns the return addresses of one of its stacks, most recent first.
    pub(crate) fn addresses(&self, stack: &RawStack) -> Vec<usize> {
        self.addresses.to_vec(stack.addresses)
    }

    /// Returns the keys and values of the scope of one of its stacks.
    pub(crate) fn scope(&self, stack: &RawStack) -> &[(&'static str, Arc<str>)] {
        self.scopes.of(stack.scope)
    }

    /// Leaves out the stacks that hold nothing.
    pub(crate) fn retain_live(&mut self) {
        self.stacks.retain(|stack| stack.counts.live_blocks() > 0 || stack.counts.live_bytes() > 0);
    }

    /// Returns the sums over all stacks.
    pub(crate) fn totals(&self) -> Counts {
        let mut totals = Counts::default();
        self.stacks.iter().for_each(|stack| totals += stack.counts);
        totals
    }

    /// Returns the stacks by live bytes, then by allocated bytes, most first.
    pub(crate) fn largest_first(&self) -> Vec<&RawStack> {
        let mut stacks: Vec<&RawStack> = self.stacks.iter().collect();
        let live = |stack: &RawStack| ProfileValue::LiveBytes.of(&stack.counts);
        stacks.sort_by_key(|stack| (Reverse(live(stack)), Reverse(stack.counts.allocated_bytes), stack.id));
        stacks
    }
}

/// Builds a profile of stacks with their allocated and freed bytes and blocks, for the tests of the outlets.
#[cfg(test)]
pub(crate) fn sample(stacks: &[(&[usize], [u64; 4])]) -> Profile {
    let mut all = Addresses::default();
    let numbered = (2..).zip(stacks);
    let stacks: Vec<RawStack> = numbered
        .map(|(id, &(addresses, counts))| {
            let [allocated_bytes, allocated_blocks, freed_bytes, freed_blocks] = counts;
            let counts = Counts { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks };
            RawStack { addresses: all.push_stack(addresses), ..RawStack::sample(id, counts) }
        })
        .collect();
    Profile {
        taken: Instant::now(),
        epoch: 2,
        taken_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_793_000_000_250),
        over: None,
        traceback_limit: 32,
        sample_interval_bytes: 0,
        stacks,
        addresses: all.into(),
        scopes: Arc::default(),
    }
}

/// Builds a profile of stacks in the scope of the tenant beside them, or in none, for the tests of the outlets.
#[cfg(test)]
pub(crate) fn sample_in_scopes(stacks: &[(&[usize], [u64; 4], &'static str)]) -> Profile {
    let plain: Vec<(&[usize], [u64; 4])> = stacks.iter().map(|&(stack, counts, _)| (stack, counts)).collect();
    let mut profile = sample(&plain);
    let pairs: Vec<[(&'static str, &str); 2]> =
        stacks.iter().map(|&(.., tenant)| [("route", "/a;b"), ("tenant", tenant)]).collect();
    let names: Vec<(ScopeId, &[(&'static str, &str)])> =
        (1..).zip(&pairs).map(|(number, pairs)| (ScopeId::sample(number), &pairs[..])).collect();
    profile.scopes = ScopeNames::sample(&names).into();
    for (number, (stack, &(.., tenant))) in (1..).zip(profile.stacks.iter_mut().zip(stacks)) {
        stack.scope = if tenant.is_empty() { ScopeId::NONE } else { ScopeId::sample(number) };
    }
    profile
}

/// Random calls of a made-up process, with unlikely names, and profiles of them, for the encoders' tests.
#[cfg(test)]
pub(crate) struct Calls {
    stacks: Vec<Vec<usize>>,
    /// Frames by address; frames inlined there first.
    frames: HashMap<usize, Vec<Arc<Frame>>>,
}

#[cfg(test)]
impl Calls {
    pub(crate) fn new(random: &mut Random) -> Calls {
        let words =
            ["app", "::", "<", ">", "{closure#0}", " ", "&", "'", "@", "#\t", "1: 1", "\u{7f}", "\u{2028}"];
        let addresses: Vec<usize> = (0..12).map(|_| (random.next() as usize % 0x4_0000) | 1).collect();
        let mut frame = || {
            let text = random.text(&words);
            let (line, is_in_module) = (random.edge() as u32, random.below(2) == 0);
            let mut frame = Frame::new((random.below(4) != 0).then_some(&*text), &random.text(&words), line);
            if frame.function.is_none() && is_in_module {
                (frame.module, frame.offset) = (Some(text.into()), Some(random.edge()));
            }
            Arc::new(frame)
        };
        let frames = addresses.iter().map(|&at| (at, (0..1 + at % 3).map(|_| frame()).collect())).collect();
        let mut stack = || {
            let calls = (0..1 + random.below(6)).map(|_| random.one(&addresses));
            calls.collect()
        };
        Calls { stacks: (0..64).map(|_| stack()).collect(), frames }
    }

    /// Counts are those a process can reach: eight terabytes.
    pub(crate) fn profile(&self, random: &mut Random) -> Profile {
        let mut one = || {
            (&*self.stacks[random.below(self.stacks.len())], [0; 4].map(|_: u64| random.edge() % (1 << 43)))
        };
        let stacks: Vec<(&[usize], [u64; 4])> = (0..8).map(|_| one()).collect();
        sample(&stacks[..random.below(9)])
    }

    /// Returns the frames of a stack. The first call may lack some inlined frames, as where the site is further out.
    pub(crate) fn placed(&self, addresses: &[usize]) -> Vec<Placed> {
        let skipped = addresses.len() % 2;
        let calls = addresses.iter().enumerate().flat_map(|(at, address)| {
            let frames = self.frames[address].iter().enumerate();
            frames.map(move |(inlined, frame)| Placed { at, inlined, frame: frame.clone() })
        });
        let skip = |placed: &Placed| placed.at == 0 && placed.inlined < skipped;
        calls.filter(|placed| !skip(placed) || self.frames[&addresses[0]].len() == 1).collect()
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("stacks", &self.stacks.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[usize] = &[0x1000_0001];
    const TWO: &[usize] = &[0x1000_0002];
    const THREE: &[usize] = &[0x1000_0003];

    #[test]
    fn case_58_a_difference_leaves_out_what_did_nothing() {
        let before = sample(&[(ONE, [100, 10, 0, 0]), (TWO, [50, 5, 20, 2]), (THREE, [8, 1, 0, 0])]);
        let mut after = sample(&[(ONE, [100, 10, 0, 0]), (TWO, [50, 5, 50, 5]), (THREE, [24, 3, 16, 2])]);
        after.taken = before.taken + Duration::from_secs(5);
        after.taken_at = before.taken_at + Duration::from_secs(5);
        let during = after.since(&before);
        let values: Vec<(Vec<usize>, [i64; 4])> = during
            .stacks
            .iter()
            .map(|stack| (during.addresses(stack), ProfileValue::ALL.map(|value| value.of(&stack.counts))))
            .collect();
        // Freed without allocating: live falls. Allocated and freed: live stays, and yet it is there.
        assert_eq!(values, [(TWO.to_vec(), [0, 0, -3, -30]), (THREE.to_vec(), [2, 16, 0, 0])]);
        assert_eq!((during.taken_at, during.over), (before.taken_at, Some(Duration::from_secs(5))));

        // Cleared in between: ids begin anew and so do the counts.
        after.epoch += 7;
        let counts = |profile: &Profile| profile.stacks.iter().map(|stack| stack.counts).collect::<Vec<_>>();
        assert_eq!(counts(&after.since(&before)), counts(&after));
    }

    #[test]
    fn the_largest_come_first() {
        let profile = sample(&[(ONE, [100, 10, 90, 9]), (TWO, [50, 5, 0, 0]), (THREE, [200, 1, 190, 0])]);
        let order: Vec<u32> = profile.largest_first().iter().map(|stack| stack.id).collect();
        assert_eq!(order, [3, 4, 2]);
    }
}
