//! Writer of cpio archives in the "newc" format, which the kernel unpacks as its first file system (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::io::Write as _;

/// File type bits of a mode (POSIX `sys/stat.h`).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The name of the last entry.
const TRAILER: &str = "TRAILER!!!";

/// An archive in memory. Paths are absolute in the file system that it becomes; directories above an entry are made.
#[derive(Clone, Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

/// What an entry is besides its name.
#[derive(Clone, Copy, Default)]
struct Entry<'a> {
    mode: u32,
    data: &'a [u8],
    device: (u32, u32),
}

impl Archive {
    /// Adds an executable file.
    pub(super) fn file(&mut self, path: &str, data: &[u8]) {
        self.parents(path);
        let entry = Entry {
            mode: REGULAR | 0o755,
            data,
            ..Entry::default()
        };
        self.entry(path, entry);
    }

    /// Adds an empty directory.
    pub(super) fn directory(&mut self, path: &str) {
        self.parents(path);
        if self.directories.insert(path.to_owned()) {
            let entry = Entry {
                mode: DIRECTORY | 0o755,
                ..Entry::default()
            };
            self.entry(path, entry);
        }
    }

    /// Adds a character device.
    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        let entry = Entry {
            mode: CHARACTER_DEVICE | 0o600,
            device: (major, minor),
            ..Entry::default()
        };
        self.entry(path, entry);
    }

    /// The archive with its last entry.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, Entry::default());
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !parent.is_empty()
        {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, entry: Entry<'_>) {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let data_len = u32::try_from(entry.data.len()).expect("files are smaller than 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("names are short");
        let fields = [
            self.entries, // inode number
            entry.mode,
            0, // user
            0, // group
            1, // links
            0, // time of modification
            data_len,
            0, // device that holds the file: major and minor
            0,
            entry.device.0,
            entry.device.1,
            name_len,
            0, // checksum, of another format
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").expect("memory can be written");
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(entry.data);
        self.align();
    }

    /// Names with their headers, and contents, are padded to four bytes.
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, contents and device.
    type Read = (String, u32, Vec<u8>, (u32, u32));

    /// Every entry, by the format's rules.
    fn read(bytes: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701", "at {at}");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let digits = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, data_len, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name_at = at + 110;
            let name = &bytes[name_at..name_at + name_len - 1];
            assert_eq!(bytes[name_at + name_len - 1], 0);
            let data_at = (name_at + name_len).next_multiple_of(4);
            entries.push((
                String::from_utf8(name.to_vec()).unwrap(),
                mode,
                bytes[data_at..data_at + data_len].to_vec(),
                device,
            ));
            at = (data_at + data_len).next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn entries_are_read_back_with_their_directories_once() {
        let mut archive = Archive::default();
        archive.file("/lib/deep/a.so", b"12345");
        archive.file("/lib/b.so", b"");
        archive.directory("/lib");
        archive.character_device("/dev/console", 5, 1);
        let entries = read(&archive.finish());
        let expected = [
            ("lib", 0o040_755, "", (0, 0)),
            ("lib/deep", 0o040_755, "", (0, 0)),
            ("lib/deep/a.so", 0o100_755, "12345", (0, 0)),
            ("lib/b.so", 0o100_755, "", (0, 0)),
            ("dev", 0o040_755, "", (0, 0)),
            ("dev/console", 0o020_600, "", (5, 1)),
            ("TRAILER!!!", 0, "", (0, 0)),
        ]
        .map(|(name, mode, data, device)| {
            (name.to_owned(), mode, data.as_bytes().to_vec(), device)
        });
        assert_eq!(entries, expected);
    }

    #[test]
    fn every_length_of_name_and_contents_is_padded() {
        for len in 1..9 {
            let mut archive = Archive::default();
            let name = format!("/{}", "n".repeat(len));
            archive.file(&name, &vec![7; len]);
            let entries = read(&archive.finish());
            assert_eq!(entries[0].0, name[1..]);
            assert_eq!(entries[0].2, vec![7; len]);
            assert_eq!(entries[1].0, TRAILER);
        }
    }
}
