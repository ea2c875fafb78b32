//! The cache of decoded blocks, by the host memory that their code lies in.

use std::fmt;

use crate::cpu::CodeSize;
use crate::decode::{self, MAX_LEN_BYTES, MAX_OPS};
use crate::memory::Host;
use crate::op::Op;

/// Entries. Each holds [`MAX_OPS`] instructions at most, which bounds the memory of the cache: 12 MiB.
const ENTRIES: usize = 4096;

/// Instructions that run one after the other.
pub(crate) struct Block {
    pub(crate) ops: Box<[Op]>,
    host: Host,
    /// Where an instruction that crosses the end of the page goes on.
    second: Option<Host>,
    rip: u64,
    size: CodeSize,
    /// The code, to be compared with memory that may have changed.
    bytes: Box<[u8]>,
    /// The generation of memory in which it was last found unchanged.
    generation: u64,
}

/// Where code begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) host: Host,
    pub(crate) rip: u64,
    pub(crate) size: CodeSize,
}

pub(crate) struct BlockCache {
    entries: Box<[Option<Box<Block>>]>,
}

impl Default for BlockCache {
    fn default() -> Self {
        Self {
            entries: std::iter::repeat_with(|| None).take(ENTRIES).collect(),
        }
    }
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.entries.iter().filter(|entry| entry.is_some()).count();
        write!(f, "BlockCache({used} blocks)")
    }
}

/// The place of a block. Neighbouring code spreads over the cache.
#[inline]
fn place(host: Host) -> usize {
    (host.number().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52) as usize & (ENTRIES - 1)
}

impl BlockCache {
    #[inline]
    pub(crate) fn block(&self, place: usize) -> Option<&Block> {
        self.entries[place & (ENTRIES - 1)].as_deref()
    }

    /// The block that begins there, if it is known to be what memory holds.
    #[inline]
    pub(crate) fn find(&self, start: &Start, generation: u64) -> Option<usize> {
        let place = place(start.host);
        let block = self.entries[place].as_deref()?;
        let found = block.is(start) && block.generation == generation && block.second.is_none();
        found.then_some(place)
    }

    /// As [`find`](Self::find), for a block that may have changed or goes on in another page: it is compared with memory.
    pub(crate) fn verify(
        &mut self,
        start: &Start,
        second: Option<Host>,
        generation: u64,
    ) -> Option<usize> {
        let place = place(start.host);
        let block = self.entries[place].as_deref_mut()?;
        if !block.is(start) || block.second.is_some() && block.second != second {
            return None;
        }
        if block.generation != generation {
            if !block.is_unchanged() {
                return None;
            }
            block.generation = generation;
        }
        Some(place)
    }

    /// Whether the block that begins there goes on in another page.
    pub(crate) fn crosses(&self, start: &Start) -> bool {
        let block = self.entries[place(start.host)].as_deref();
        block.is_some_and(|block| block.is(start) && block.second.is_some())
    }

    /// Decodes what is there. `second` is the page behind, if it is known. `None` when the first instruction needs it.
    pub(crate) fn decode(
        &mut self,
        start: &Start,
        second: Option<Host>,
        generation: u64,
    ) -> Option<usize> {
        let mut buffer = [0; MAX_OPS * MAX_LEN_BYTES];
        let (wanted, max_ops) = match second {
            None => (buffer.len(), MAX_OPS),
            Some(_) => (MAX_LEN_BYTES, 1),
        };
        let mut len = start.host.read_bytes(&mut buffer[..wanted]);
        let first_len = len;
        if let Some(second) = second {
            len += second.read_bytes(&mut buffer[len..wanted]);
        }
        let decoded = decode::decode(&buffer[..len], start.rip, start.size, max_ops);
        if decoded.ops.is_empty() {
            return None;
        }
        let place = place(start.host);
        self.entries[place] = Some(Box::new(Block {
            ops: decoded.ops.into(),
            host: start.host,
            second: second.filter(|_| decoded.len_bytes > first_len),
            rip: start.rip,
            size: start.size,
            bytes: buffer[..decoded.len_bytes].into(),
            generation,
        }));
        Some(place)
    }
}

impl Block {
    #[inline]
    fn is(&self, start: &Start) -> bool {
        self.host == start.host && self.rip == start.rip && self.size == start.size
    }

    fn is_unchanged(&self) -> bool {
        let mut buffer = [0; MAX_OPS * MAX_LEN_BYTES];
        let now = &mut buffer[..self.bytes.len()];
        let mut len = self.host.read_bytes(now);
        if let Some(second) = self.second {
            len += second.read_bytes(&mut now[len..]);
        }
        len == self.bytes.len() && *now == *self.bytes
    }

    /// RIP of its first instruction.
    pub(crate) fn rip(&self) -> u64 {
        self.rip
    }
}
