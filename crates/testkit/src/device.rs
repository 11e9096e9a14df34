//! A storage of fixed length that was used before: a block device.

use goldsmith_block::{Error, ErrorKind, HostRange, Result, Storage, StorageMut, Zeroing, pass_on};
use goldsmith_storage::MemoryStorage;

/// A block device in memory, full of old bytes.
#[derive(Debug)]
pub struct DeviceStorage {
    memory: MemoryStorage,
    len: u64,
}

impl DeviceStorage {
    /// A device that holds `old`.
    pub fn holding(old: Vec<u8>) -> Self {
        let len = old.len() as u64;
        let memory = MemoryStorage::holding("device", old);
        Self { memory, len }
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.memory.to_vec()
    }
}

impl Storage for DeviceStorage {
    pass_on!(memory: name, id, read_at);

    fn len(&self) -> u64 {
        self.len
    }
}

impl StorageMut for DeviceStorage {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if offset + data.len() as u64 > self.len {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(Error::new(ErrorKind::Io, full));
        }
        self.memory.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if len > self.len {
            let text = format!("{len} bytes do not fit on a device of {}", self.len);
            return Err(Error::usage(text));
        }
        Ok(())
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        self.memory.zero(range, zeroing)
    }

    fn flush(&self) -> Result<()> {
        self.memory.flush()
    }

    fn fixed_len(&self) -> Option<u64> {
        Some(self.len)
    }

    fn is_blank(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_past_the_end() {
        let device = DeviceStorage::holding(vec![7; 1024]);
        device.set_len(512).unwrap();
        assert_eq!(device.len(), 1024);
        assert_eq!(device.set_len(1025).unwrap_err().kind(), ErrorKind::Usage);
        device.write_at(1020, b"gold").unwrap();
        assert_eq!(
            device.write_at(1021, b"gold").unwrap_err().kind(),
            ErrorKind::Io
        );
        assert_eq!(&device.to_vec()[1019..], b"\x07gold");
    }
}
