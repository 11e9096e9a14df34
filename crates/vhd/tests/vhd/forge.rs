//! Images as other people's tools write them, byte by byte, and knowing nothing of our own code.

/// A VHD in the making.
#[derive(Clone)]
pub(crate) struct Forge {
    pub(crate) creator: [u8; 4],
    pub(crate) creator_version: u32,
    pub(crate) current_size: u64,
    pub(crate) chs: (u16, u8, u8),
    pub(crate) block_size: u32,
    /// Entries of the block table, as many as the disk needs if `None`.
    pub(crate) table_entries: Option<u32>,
    /// Byte offset of the dynamic header.
    pub(crate) header_at: usize,
    /// Bytes of nothing before the block table and before each block.
    pub(crate) padding: usize,
    /// Whether the block table stands behind the blocks.
    pub(crate) table_last: bool,
    /// 512, or 511 as before Virtual PC 2004.
    pub(crate) footer_len: usize,
    /// Index, bitmap as it stands in the file, data; in the order of the file.
    pub(crate) blocks: Vec<(usize, Vec<u8>, Vec<u8>)>,
    pub(crate) uuid: [u8; 16],
    /// Makes the image a differencing one.
    pub(crate) parent: Option<Parent>,
    /// Version, checksum and bytes of the batmap; the checksum is computed if `None`.
    pub(crate) batmap: Option<(u32, Option<u32>, Vec<u8>)>,
}

/// What a differencing image says about its parent.
#[derive(Clone, Default)]
pub(crate) struct Parent {
    pub(crate) uuid: [u8; 16],
    pub(crate) timestamp: u32,
    /// UTF-16 in whatever order.
    pub(crate) name: Vec<u8>,
    /// Platform code, space as it stands there, bytes of the name.
    pub(crate) locators: Vec<([u8; 4], u32, Vec<u8>)>,
}

impl Parent {
    /// The parent with this identity, that nothing names.
    pub(crate) fn nameless(uuid: [u8; 16]) -> Self {
        Self {
            uuid,
            ..Self::default()
        }
    }

    /// With a locator of a Windows path, its room counted in bytes as Microsoft does.
    pub(crate) fn locator(mut self, code: &[u8; 4], name: &str) -> Self {
        let bytes = match code {
            b"MacX" => name.as_bytes().to_vec(),
            _ => name.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        };
        self.locators.push((*code, 512, bytes));
        self
    }

    /// With this Unicode name, as the specification has it.
    pub(crate) fn name(mut self, name: &str) -> Self {
        self.name = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        self
    }
}

impl Forge {
    /// A disk of `size` bytes as Hyper-V would make it.
    pub(crate) fn new(size: u64, block_size: u32) -> Self {
        Self {
            creator: *b"win ",
            creator_version: 0x000a_0000,
            current_size: size,
            chs: (65535, 16, 255),
            block_size,
            table_entries: None,
            header_at: 512,
            padding: 0,
            table_last: false,
            footer_len: 512,
            blocks: Vec::new(),
            uuid: *b"a very unique id",
            parent: None,
            batmap: None,
        }
    }

    /// With block `index` behind this bitmap, which is padded to whole sectors.
    pub(crate) fn block(mut self, index: usize, bitmap: &[u8], data: &[u8]) -> Self {
        assert_eq!(data.len(), self.block_size as usize);
        let mut bitmap = bitmap.to_vec();
        bitmap.resize(bitmap.len().next_multiple_of(512), 0);
        self.blocks.push((index, bitmap, data.to_vec()));
        self
    }

    /// With block `index` and all its bits set.
    pub(crate) fn full_block(self, index: usize, data: &[u8]) -> Self {
        let bitmap = vec![0xff; data.len() / 4096];
        self.block(index, &bitmap, data)
    }

    fn footer(&self, disk_type: u32, data_offset: u64) -> Vec<u8> {
        let mut footer = b"conectix\0\0\0\x02\0\x01\0\0".to_vec();
        footer.extend(data_offset.to_be_bytes());
        footer.extend(0x0120_3040_u32.to_be_bytes());
        footer.extend(self.creator);
        footer.extend(self.creator_version.to_be_bytes());
        footer.extend(b"Wi2k");
        footer.extend(self.current_size.to_be_bytes());
        footer.extend(self.current_size.to_be_bytes());
        footer.extend(self.chs.0.to_be_bytes());
        footer.extend([self.chs.1, self.chs.2]);
        footer.extend(disk_type.to_be_bytes());
        footer.extend([0; 4]);
        footer.extend(self.uuid);
        footer.resize(512, 0);
        seal(&mut footer, 64);
        footer
    }

    /// A fixed image that holds `data`.
    pub(crate) fn fixed(&self, data: &[u8]) -> Vec<u8> {
        let footer = self.footer(2, u64::MAX);
        [data, &footer[..self.footer_len]].concat()
    }

    /// A dynamic image, or a differencing one if it has a parent.
    pub(crate) fn dynamic(&self) -> Vec<u8> {
        let disk_type = if self.parent.is_some() { 4 } else { 3 };
        let footer = self.footer(disk_type, self.header_at as u64);
        let need = self.current_size.div_ceil(self.block_size.into()) as u32;
        let entries = self.table_entries.unwrap_or(need);
        let mut table = vec![0xff; (entries as usize * 4).next_multiple_of(512)];

        let mut image = footer.clone();
        image.resize(self.header_at + 1024 + self.padding, 0xee);
        let parent = self.parent.clone().unwrap_or_default();
        let mut locators = Vec::new();
        for (code, space, name) in &parent.locators {
            locators.extend(code);
            locators.extend(space.to_be_bytes());
            locators.extend((name.len() as u32).to_be_bytes());
            locators.extend([0; 4]);
            locators.extend((image.len() as u64).to_be_bytes());
            image.extend(name);
            image.resize(image.len().next_multiple_of(512), 0);
        }
        let mut table_at = image.len();
        if !self.table_last {
            image.extend(&table);
        }
        if let Some((version, checksum, map)) = &self.batmap {
            let sum: u32 = map.iter().map(|byte| u32::from(*byte)).sum();
            let mut header = b"tdbatmap".to_vec();
            header.extend((image.len() as u64 + 512).to_be_bytes());
            header.extend((map.len().div_ceil(512) as u32).to_be_bytes());
            header.extend(version.to_be_bytes());
            header.extend(checksum.unwrap_or(!sum).to_be_bytes());
            header.resize(512, 0);
            image.extend(header);
            image.extend(map);
            image.resize(image.len().next_multiple_of(512), 0);
        }
        for (index, bitmap, data) in &self.blocks {
            image.extend(vec![0xee; self.padding]);
            let sector = (image.len() / 512) as u32;
            table[index * 4..][..4].copy_from_slice(&sector.to_be_bytes());
            image.extend(bitmap);
            image.extend(data);
        }
        if self.table_last {
            table_at = image.len();
            image.extend(&table);
        }
        image[table_at..][..table.len()].copy_from_slice(&table);

        let mut header = b"cxsparse".to_vec();
        header.extend(u64::MAX.to_be_bytes());
        header.extend((table_at as u64).to_be_bytes());
        header.extend(0x0001_0000_u32.to_be_bytes());
        header.extend(entries.to_be_bytes());
        header.extend(self.block_size.to_be_bytes());
        header.extend([0; 4]);
        header.extend(parent.uuid);
        header.extend(parent.timestamp.to_be_bytes());
        header.extend([0; 4]);
        header.extend(&parent.name);
        header.resize(576, 0);
        header.extend(&locators);
        header.resize(1024, 0);
        seal(&mut header, 36);
        image[self.header_at..][..1024].copy_from_slice(&header);

        image.extend(&footer[..self.footer_len]);
        image
    }
}

/// Puts the checksum at `at` of `structure` right.
pub(crate) fn seal(structure: &mut [u8], at: usize) {
    structure[at..at + 4].fill(0);
    let sum: u32 = structure.iter().map(|byte| u32::from(*byte)).sum();
    structure[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// `image` with `bytes` at `at` of its last footer, whose checksum is put right.
pub(crate) fn patch_footer(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let start = image.len() - 512;
    let footer = &mut image[start..];
    footer[at..at + bytes.len()].copy_from_slice(bytes);
    seal(footer, 64);
    image
}

/// `image` with `bytes` at `at` of the dynamic header at 512, whose checksum is put right.
pub(crate) fn patch_header(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let header = &mut image[512..1536];
    header[at..at + bytes.len()].copy_from_slice(bytes);
    seal(header, 36);
    image
}
