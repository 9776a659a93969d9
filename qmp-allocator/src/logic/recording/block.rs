//! Blocks: a length, a checksum, and so many bytes.
//!
//! A daemon that is killed, a disk that is full and a host that loses power leave a file whose last block is
//! not whole: it is left unread. A block that is not whole with more behind it has been tampered with or
//! lies on a bad disk: nothing after it can be believed, and that is an error.

/// Format and version. Another layout of blocks or entries gets another last byte.
pub const MAGIC: [u8; 8] = *b"FLEXVFR\x01";
/// Length and checksum, 32 bits each, the lowest byte first.
pub const HEAD_BYTES: usize = 8;
/// A decision on 10,000 VMs with the longest names is a third of it.
pub const MAX_BYTES: usize = 16 << 20;

/// A block's first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHead {
    /// Bytes that follow.
    pub length: usize,
    checksum: u32,
}

impl BlockHead {
    /// Of this content.
    pub fn of(content: &[u8]) -> Self {
        Self { length: content.len(), checksum: crc32(content) }
    }

    /// As bytes; `None` of a block that would be empty or too long.
    pub fn encode(self) -> Option<[u8; HEAD_BYTES]> {
        let length = u32::try_from(self.length).ok()?;
        let [l0, l1, l2, l3] = length.to_le_bytes();
        let [c0, c1, c2, c3] = self.checksum.to_le_bytes();
        self.is_possible().then_some([l0, l1, l2, l3, c0, c1, c2, c3])
    }

    /// From bytes; `None` if no block begins so.
    pub fn decode(bytes: [u8; HEAD_BYTES]) -> Option<Self> {
        let [l0, l1, l2, l3, c0, c1, c2, c3] = bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let head = Self { length, checksum: u32::from_le_bytes([c0, c1, c2, c3]) };
        head.is_possible().then_some(head)
    }

    /// Whether these bytes are what was written.
    pub fn fits(self, content: &[u8]) -> bool {
        self == Self::of(content)
    }

    const fn is_possible(self) -> bool {
        self.length > 0 && self.length <= MAX_BYTES
    }
}

/// CRC-32 as of IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        let index = (crc ^ u32::from(*byte)) & 0xff;
        (crc >> 8) ^ TABLE.get(index as usize).copied().unwrap_or_default()
    })
}

#[expect(clippy::indexing_slicing, reason = "run by the compiler, which would refuse a bad index")]
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_that_all_tools_know() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn only_a_possible_block_has_a_head() {
        let head = BlockHead::of(b"abc");
        assert_eq!(BlockHead::decode(head.encode().unwrap()), Some(head));
        assert!(head.fits(b"abc") && !head.fits(b"abd") && !head.fits(b"ab"));
        assert_eq!(BlockHead::of(b"").encode(), None);
        assert_eq!(BlockHead::decode([0; 8]), None);
        assert_eq!(BlockHead::decode([0xff; 8]), None);
    }
}
