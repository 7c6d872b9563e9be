//! Maps that the agent has mapped into its memory: every write is one atomic store, seen by program runs at once.

use bulkhead_common::PeerId;
use bulkhead_common::maps::{Control, capacity};
use bulkhead_common::outside::Share;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The memory of an array map.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is only reached through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        Self::part(map, 0, length)
    }

    /// From an offset on, which is a multiple of the page's size.
    fn part(map: BorrowedFd<'_>, offset: usize, length: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let length = length.next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else lies there.
        let start = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, map, offset as u64)?
        };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self { start, length })
    }

    fn word64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length, "offset {offset} lies outside the map");
        // SAFETY: in range and aligned, as just checked (the mapping itself is page-aligned); shared memory is reached
        // through atomics only, and it lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length, "offset {offset} lies outside the map");
        // SAFETY: as in `word64`.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and all references into it have ended with `self`.
        let result = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(result.is_ok(), "munmap of a mapping that we made");
    }
}

/// An array whose elements are rows of `u64` words, the first two of them a payload's slots.
///
/// It is mapped piece by piece as it is used: the kernel gives a mapping all of its pages at once, and the arrays are as
/// large as they may ever have to be.
#[derive(Debug)]
pub(super) struct Rows {
    map: OwnedFd,
    pieces: Vec<OnceLock<Mapping>>,
    words: usize,
    len: u32,
}

/// Bytes of a piece: a multiple of every page size, and of a word.
const PIECE: usize = 256 << 10;

impl Rows {
    pub(super) fn new(map: BorrowedFd<'_>, len: u32, words: usize) -> io::Result<Self> {
        let pieces = (len as usize * words * 8).div_ceil(PIECE);
        let this = Self {
            map: map.try_clone_to_owned()?,
            pieces: std::iter::repeat_with(OnceLock::new).take(pieces).collect(),
            words,
            len,
        };
        // If it can't be mapped at all, that shows here.
        if let Some(first) = this.pieces.first() {
            first.set(this.mapped(0)?).ok();
        }
        Ok(this)
    }

    fn mapped(&self, piece: usize) -> io::Result<Mapping> {
        let whole = self.len as usize * self.words * 8;
        Mapping::part(self.map.as_fd(), piece * PIECE, PIECE.min(whole - piece * PIECE))
    }

    /// A process that may map nothing more is as one that is killed: what is in force stays, and the next one goes on
    /// from there.
    fn piece(&self, n: usize) -> &Mapping {
        self.pieces[n].get_or_init(|| {
            self.mapped(n).unwrap_or_else(|e| panic!("no memory can be mapped for a table any more: {e}"))
        })
    }

    /// Takes back what is mapped of it, until it is used again.
    pub(super) fn unmap(&mut self) {
        self.pieces.iter_mut().for_each(|piece| drop(piece.take()));
    }

    /// The same array again, for a look at all of it: what that maps goes with it.
    pub(super) fn again(&self) -> io::Result<Self> {
        Self::new(self.map.as_fd(), self.len, self.words)
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// One word of a row.
    pub(super) fn word(&self, row: u32, n: usize) -> &AtomicU64 {
        assert!(n < self.words, "a row has {} words", self.words);
        let offset = (row as usize * self.words + n) * 8;
        self.piece(offset / PIECE).word64(offset % PIECE)
    }

    /// Words of a row from the n-th on.
    pub(super) fn take<const N: usize>(&self, row: u32, n: usize) -> [u64; N] {
        std::array::from_fn(|i| self.word(row, n + i).load(Ordering::Acquire))
    }

    /// One of the two slots.
    pub(super) fn slot(&self, row: u32, half: usize) -> u64 {
        self.word(row, half & 1).load(Ordering::Acquire)
    }

    /// Writes one of the two slots.
    pub(super) fn set_slot(&self, row: u32, half: usize, payload: u64) {
        self.word(row, half & 1).store(payload, Ordering::Release);
    }
}

/// What each identity has taken of what is bounded for all.
#[derive(Debug)]
pub(super) struct Shares {
    memory: Mapping,
}

impl Shares {
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { memory: Mapping::new(map, capacity::IDENTITIES as usize * size_of::<Share>())? })
    }

    /// How many entries it has of the map of even eras, or of odd ones.
    pub(super) fn entries(&self, of: PeerId, half: usize) -> &AtomicU32 {
        let share = of.0 as usize * size_of::<Share>();
        self.memory.word32(share + offset_of!(Share, entries) + (half & 1) * 4)
    }
}

/// The one element of [`bulkhead_common::maps::CONTROL`].
#[derive(Debug)]
pub(super) struct ControlWords {
    memory: Mapping,
}

impl ControlWords {
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { memory: Mapping::new(map, size_of::<Control>())? })
    }

    pub(super) fn epoch(&self) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, epoch))
    }

    pub(super) fn abi(&self) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, abi))
    }

    pub(super) fn levels(&self) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, levels))
    }

    pub(super) fn level_list(&self) -> &AtomicU64 {
        self.memory.word64(offset_of!(Control, level_list))
    }

    pub(super) fn flags(&self) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, flags))
    }

    pub(super) fn host_netns(&self) -> &AtomicU64 {
        self.memory.word64(offset_of!(Control, host_netns))
    }

    pub(super) fn seed(&self) -> &AtomicU64 {
        self.memory.word64(offset_of!(Control, seed))
    }

    /// The size of the n-th searched table less one, in one of the two slots.
    pub(super) fn mask(&self, n: usize, half: usize) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, masks) + n * 8 + (half & 1) * 4)
    }

    /// Which map of peers outside is counted in.
    pub(super) fn era(&self) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, era))
    }

    /// When connections were last asked what they have carried.
    pub(super) fn tick(&self) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, tick))
    }

    /// How many entries each of them holds.
    pub(super) fn outside(&self) -> &AtomicU32 {
        self.memory.word32(offset_of!(Control, outside))
    }

    pub(super) fn generation(&self) -> &AtomicU64 {
        self.memory.word64(offset_of!(Control, generation))
    }
}
