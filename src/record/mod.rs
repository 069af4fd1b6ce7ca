//! Write side: runs inside the allocator, captures a stack for each allocation and counts by stack id.
//!
//! Nothing here panics, blocks on a lock that the program can hold, or allocates through the tracked allocator on a
//! hit. `analyze` and `export` use [`raw_snapshot`], [`control`], [`mod@measure`], [`mod@global_allocator`], `statm`,
//! [`trim`], [`unlisted`], [`residency`], [`c_malloc`], `file_map`, [`fork`], [`watermark`], [`failure`], [`wake_signal`] and
//! [`file_lock`], and no other file of this folder.

pub(crate) mod allocator;
pub(crate) mod append_list;
pub(crate) mod bounded_wait;
pub(crate) mod c_malloc;
pub(crate) mod cache_counts;
pub(crate) mod control;
pub(crate) mod count;
pub(crate) mod dropped;
pub(crate) mod epoch;
pub(crate) mod event;
pub(crate) mod failure;
pub(crate) mod file_lock;
#[cfg(target_os = "linux")]
pub(crate) mod file_map;
pub(crate) mod fork;
pub(crate) mod global_allocator;
pub(crate) mod measure;
pub(crate) mod memory;
pub(crate) mod own_frames;
pub(crate) mod peak;
pub(crate) mod raw_snapshot;
pub(crate) mod residency;
pub(crate) mod scope;
pub(crate) mod stack_id;
pub(crate) mod startup;
pub(crate) mod statm;
pub(crate) mod tag;
#[cfg(test)]
pub(crate) mod test_blocks;
pub(crate) mod thread;
pub(crate) mod trim;
pub(crate) mod unlisted;
pub(crate) mod unwind;
pub(crate) mod wake_signal;
pub(crate) mod watermark;
