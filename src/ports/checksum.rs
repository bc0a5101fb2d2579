//! The checksums that S3 stores for whole objects.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// S3 User Guide, "Checking object integrity".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Crc64Nvme,
    Crc32,
    Crc32C,
    Sha1,
    Sha256,
}

impl Algorithm {
    /// Can the checksum of the whole be computed from those of its parts?
    pub fn is_composable(self) -> bool {
        matches!(self, Self::Crc64Nvme | Self::Crc32 | Self::Crc32C)
    }
}

/// S3's name.
impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crc64Nvme => "CRC64NVME",
            Self::Crc32 => "CRC32",
            Self::Crc32C => "CRC32C",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        })
    }
}

/// The expected checksum of an object's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    pub algorithm: Algorithm,
    /// In Base64, the bytes in network order, as S3 writes it.
    pub value: String,
}

/// Hashes a stream of bytes.
#[derive(Debug, Clone)]
pub enum Hasher {
    Crc32(crc_fast::Digest),
    Crc64(crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Crc64Nvme => Self::Crc64(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme)),
            Algorithm::Crc32 => Self::Crc32(crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc)),
            Algorithm::Crc32C => Self::Crc32(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            Algorithm::Sha1 => Self::Sha1(Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    /// Hashes an existing range of a file. Blocks.
    pub fn hash_file(algorithm: Algorithm, path: &Path, range: Range<u64>) -> io::Result<Self> {
        const BUFFER: usize = 256 << 10;
        let file = File::open(path)?;
        let mut hasher = Self::new(algorithm);
        let mut buffer = Vec::new();
        for at in range.clone().step_by(BUFFER) {
            buffer.resize(
                usize::try_from(range.end - at).map_or(BUFFER, |remaining| remaining.min(BUFFER)),
                0,
            );
            file.read_exact_at(&mut buffer, at)?;
            hasher.update(&buffer);
        }
        Ok(hasher)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32(digest) | Self::Crc64(digest) => digest.update(bytes),
            Self::Sha1(digest) => digest.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
        }
    }

    /// Appends the bytes that `next` has hashed; only for algorithms with
    /// [`Algorithm::is_composable`].
    pub fn append(&mut self, next: &Self) {
        match (self, next) {
            (Self::Crc32(digest), Self::Crc32(next)) | (Self::Crc64(digest), Self::Crc64(next)) => {
                digest.combine(next);
            }
            (this, next) => unreachable!("{next:?} cannot follow {this:?}"),
        }
    }

    /// In Base64, as S3 writes it.
    pub fn value(self) -> String {
        match self {
            // A CRC-32 is in the low four bytes.
            Self::Crc32(digest) => BASE64_STANDARD.encode(&digest.finalize().to_be_bytes()[4..]),
            Self::Crc64(digest) => BASE64_STANDARD.encode(digest.finalize().to_be_bytes()),
            Self::Sha1(digest) => BASE64_STANDARD.encode(digest.finalize()),
            Self::Sha256(digest) => BASE64_STANDARD.encode(digest.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Algorithm; 5] = [
        Algorithm::Crc64Nvme,
        Algorithm::Crc32,
        Algorithm::Crc32C,
        Algorithm::Sha1,
        Algorithm::Sha256,
    ];

    fn hasher(algorithm: Algorithm, bytes: &[u8]) -> Hasher {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher
    }

    /// The catalogue's check values (reveng.sourceforge.io), and FIPS 180's for "abc".
    #[test]
    fn checksums_are_as_s3_writes_them() {
        let of = |algorithm, text: &str| hasher(algorithm, text.as_bytes()).value();
        let hex = |text: &str| BASE64_STANDARD.encode(hex::decode(text).unwrap());
        assert_eq!(of(Algorithm::Crc64Nvme, "123456789"), hex("ae8b14860a799888"));
        assert_eq!(of(Algorithm::Crc32, "123456789"), hex("cbf43926"));
        assert_eq!(of(Algorithm::Crc32C, "123456789"), hex("e3069283"));
        assert_eq!(of(Algorithm::Sha1, "abc"), hex("a9993e364706816aba3e25717850c26c9cd0d89d"));
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(Algorithm::Sha256, "abc"), hex(sha256));
    }

    #[test]
    fn a_crc_can_be_combined_from_its_parts() {
        let bytes: Vec<u8> =
            (0..100_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        for algorithm in ALL.into_iter().filter(|algorithm| algorithm.is_composable()) {
            for cuts in [[0, 0], [1, 2], [4096, 70_000], [100_000, 100_000]] {
                let mut whole = hasher(algorithm, &bytes[..cuts[0]]);
                whole.append(&hasher(algorithm, &bytes[cuts[0]..cuts[1]]));
                whole.append(&hasher(algorithm, &bytes[cuts[1]..]));
                assert_eq!(
                    whole.value(),
                    hasher(algorithm, &bytes).value(),
                    "{algorithm:?} cut at {cuts:?}"
                );
            }
        }
    }
}
