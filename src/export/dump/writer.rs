//! The largest stacks of the heap → the file of a dump, from memory that is set aside.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::WAIT_FOR_NAMES;
use super::directory::Directory;
use super::largest::Largest;
use crate::analyze::dump_counts::DumpReason;
use crate::analyze::memory_limit::MemoryLimit;
use crate::analyze::snapshot::dump::{self, DumpHead};
use crate::analyze::symbols::{self, StackFrames};
use crate::record::control;

/// Length of a piece that is written at once; a stack may pass it.
const PIECE: usize = 64 << 10;
/// Room for the stack that passes it.
const LONGEST_STACK: usize = 96 << 10;
/// Room for the end of the file.
const END: u64 = 128;

/// Writer of dumps.
pub(super) struct Writer {
    buffer: Vec<u8>,
    program: String,
    build_id: Option<String>,
}

impl Writer {
    /// Sets memory aside. Reads the build id of the program.
    pub(super) fn new(program: &str) -> Writer {
        let buffer = Vec::with_capacity(PIECE + LONGEST_STACK);
        Writer { buffer, program: program.to_owned(), build_id: symbols::build_id() }
    }

    /// Writes a dump of at most so many bytes.
    pub(super) fn write(
        &mut self,
        directory: &mut Directory,
        reason: DumpReason,
        (taken_at, largest): (SystemTime, &Largest),
        limit: MemoryLimit,
        frames: &mut StackFrames,
        most: u64,
    ) -> io::Result<()> {
        let Writer { buffer, program, build_id } = self;
        let since = taken_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = std::mem::take(&mut directory.run);
        let head = DumpHead {
            taken_at: since.as_secs_f64(),
            traceback_limit: control::traceback_limit(),
            build_id: build_id.as_deref(),
            sample_interval: control::sample_interval() as u64,
            reason: reason.word(),
            program,
            run: &run,
            memory_limit: limit.limit,
            memory_limit_usage: limit.usage,
        };
        buffer.clear();
        dump::begin(buffer, &head);
        directory.run = run;
        let mut file = directory.create(most)?;
        let written = (|| {
            let (mut bytes, mut blocks) = (largest.totals.live_bytes(), largest.totals.live_blocks());
            let mut is_first = true;
            let mut has_names = true;
            for stack in largest.iter() {
                let names = if has_names { symbols::global().known(WAIT_FOR_NAMES) } else { None };
                has_names = names.is_some();
                frames.read(largest.addresses(stack), names.as_ref());
                drop(names);
                let before = buffer.len();
                let trace = dump::DumpStack { stack, frames, scope: largest.scope(stack) };
                dump::add(buffer, is_first, &trace, control::traceback_limit());
                if buffer.len() as u64 + END > file.left() {
                    buffer.truncate(before);
                    break;
                }
                is_first = false;
                bytes = bytes.saturating_sub(stack.counts.live_bytes());
                blocks = blocks.saturating_sub(stack.counts.live_blocks());
                if buffer.len() >= PIECE {
                    file.write(buffer)?;
                    buffer.clear();
                }
            }
            dump::end(buffer, bytes, blocks);
            file.write(buffer)
        })();
        match written {
            Ok(()) => file.finish(reason, since.as_secs()),
            Err(error) => {
                file.discard();
                Err(error)
            }
        }
    }
}
