//! Chains of VHDs in a tar, their disks by the slowest way there is, and what can be wrong with them.

use goldsmith_testkit::build::vhd::{Vhd, footer};

const SECTOR: usize = 512;
/// Where the builder puts the block table.
const TABLE: usize = 1536;

/// Numbers that are the same each time. [splitmix64]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// The members of a container, the child first.
#[derive(Debug)]
pub(super) struct Family {
    members: Vec<Member>,
    /// The numbers by which they stand in the tar, in its order, and how much longer or shorter each is
    /// said to be.
    tar: Vec<(usize, i64)>,
}

#[derive(Clone)]
struct Member {
    /// Of the disk.
    size: usize,
    /// 0 for a fixed one.
    block_size: usize,
    /// What each block holds: for each sector the byte that fills it, `None` where it holds nothing.
    blocks: Vec<Option<Vec<Option<u8>>>>,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.blocks.iter().flatten().count();
        let (size, block_size, len) = (self.size, self.block_size, self.bytes.len());
        write!(f, "{size} in {held} blocks of {block_size}, {len} bytes")
    }
}

impl Family {
    pub(super) fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 1 + random.below(4) as usize;
        let mut members = Vec::new();
        for number in 0..count {
            let is_last = number + 1 == count;
            // Most grow from parent to child, as they do in life.
            let most = if random.one_in(4) {
                900
            } else {
                900 - 150 * number as u64
            };
            let size = (1 + random.below(most)) as usize * SECTOR;
            members.push(match is_last && random.one_in(4) {
                true => Member::fixed(size, number, &mut random),
                false => Member::dynamic(size, number, !is_last, &mut random),
            });
        }
        Self {
            tar: (0..count).map(|number| (number, 0)).collect(),
            members,
        }
    }

    /// A child that holds every other sector of a disk of `size` bytes, and a parent that holds all.
    pub(super) fn striped(size: usize) -> Self {
        let mut random = Random::new(1);
        let members = [true, false].map(|has_parent| {
            let number = usize::from(!has_parent);
            let mut made = Member::head(size, 64 << 10, number, has_parent);
            let sectors = (0..128).map(|nth| (!has_parent || nth % 2 == 0).then_some(nth as u8));
            made.blocks = vec![Some(sectors.collect()); size >> 16];
            made.place_blocks(&mut random);
            made
        });
        Self {
            tar: vec![(0, 0), (1, 0)],
            members: members.into(),
        }
    }

    /// The disk, sector by sector.
    pub(super) fn disk(&self) -> Vec<u8> {
        let size = self.members[0].size;
        let sectors = (0..size).step_by(SECTOR).map(|at| self.sector(at));
        sectors
            .flat_map(|byte| [byte.unwrap_or(0); SECTOR])
            .collect()
    }

    fn sector(&self, at: usize) -> Option<u8> {
        let reaching = self.members.iter().take_while(|member| at < member.size);
        reaching
            .map(|member| member.sector(at))
            .find(Option::is_some)?
    }

    /// Bytes of the disk that some VHD stores.
    pub(super) fn data(&self) -> u64 {
        let sectors = (0..self.members[0].size).step_by(SECTOR);
        (sectors.filter(|at| self.sector(*at).is_some()).count() * SECTOR) as u64
    }

    pub(super) fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (number, longer) in &self.tar {
            let bytes = &self.members[*number % self.members.len()].bytes;
            let mut header = tar::Header::new_gnu();
            header.set_path(format!("{number}.vhd")).unwrap();
            header.set_size((bytes.len() as u64).saturating_add_signed(*longer));
            header.set_cksum();
            tar.append(&header, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }

    /// Makes something wrong with it, or not quite; says what.
    pub(super) fn spoil(&mut self, random: &mut Random) -> &'static str {
        let number = random.below(self.members.len() as u64) as usize;
        let count = self.members.len();
        let member = &mut self.members[number];
        let len = member.bytes.len();
        let tables = member.bytes.starts_with(b"conectix") && member.block_size > 0;
        match random.below(20) {
            0 => {
                self.tar.swap(0, count - 1);
                "order of the tar"
            }
            1 => {
                self.tar.pop();
                "last one missing"
            }
            2 => {
                self.tar.push((count, 0));
                "one too many"
            }
            3 => {
                self.tar[number].1 = random.below(2048) as i64 - 1024;
                "length in the tar"
            }
            4 => {
                member.bytes.truncate(random.below(len as u64 + 1) as usize);
                "truncated"
            }
            5 => {
                member.bytes.truncate(len - SECTOR);
                "no footer"
            }
            6 => {
                member.bytes.truncate(len - 1);
                "footer of 511 bytes"
            }
            7 => {
                let at = len - SECTOR + random.below(90) as usize;
                member.bytes[at] ^= 1 << random.below(8);
                "bit of the footer"
            }
            8 => {
                let size = (1 + random.below(1000)) as usize * SECTOR;
                member.set_size(size, random.one_in(2));
                "another size"
            }
            9 => {
                member.bytes[len - SECTOR..][..8].copy_from_slice(b"v_poison");
                member.seal_footer();
                if random.one_in(2) {
                    member.copy_footer();
                }
                "poison"
            }
            10 if tables => {
                let at = 512 + random.below(600) as usize;
                member.bytes[at] ^= 1 << random.below(8);
                "bit of the header"
            }
            11..17 if tables => {
                for _ in 0..1 + random.below(3) {
                    let block = random.below(member.blocks.len() as u64) as usize;
                    let entry = match random.below(5) {
                        0 => u32::MAX - 1,
                        1 => random.below(8) as u32,
                        2 => random.below(len as u64 / 512 + 3) as u32,
                        3 => u32::MAX,
                        // That of another one, or near it.
                        _ => {
                            let other = random.below(member.blocks.len() as u64) as usize;
                            member.entry(other).wrapping_add(random.below(3) as u32)
                        }
                    };
                    member.bytes[TABLE + block * 4..][..4].copy_from_slice(&entry.to_be_bytes());
                }
                "table"
            }
            17 if tables => {
                member.bytes[52] ^= 1;
                "copy of the footer"
            }
            _ => {
                let at = random.below(len as u64) as usize;
                member.bytes[at] ^= 1 << random.below(8);
                "any bit"
            }
        }
    }
}

fn uuid(number: usize) -> [u8; 16] {
    [number as u8 + 1; 16]
}

impl Member {
    fn fixed(size: usize, number: usize, random: &mut Random) -> Self {
        let sectors: Vec<_> = (0..size / SECTOR).map(|_| Some(filling(random))).collect();
        let content: Vec<u8> = sectors
            .iter()
            .flat_map(|it| [it.unwrap_or(0); SECTOR])
            .collect();
        Self {
            size,
            block_size: 0,
            blocks: vec![Some(sectors)],
            bytes: Vhd::fixed(&content)
                .footer(footer::UUID, &uuid(number))
                .bytes(),
        }
    }

    fn dynamic(size: usize, number: usize, has_parent: bool, random: &mut Random) -> Self {
        let block_size = 4096 << random.below(5);
        let count = size.div_ceil(block_size);
        let blocks: Vec<_> = (0..count)
            .map(|_| {
                let kind = random.below(5);
                let sectors = (0..block_size / SECTOR).map(|_| match kind {
                    1 => Some(0),
                    2 => Some(filling(random)),
                    _ => Some(filling(random)).filter(|_| !random.one_in(3)),
                });
                let sectors: Vec<_> = sectors.collect();
                (kind > 0).then_some(sectors)
            })
            .collect();
        let mut made = Self::head(size, block_size, number, has_parent);
        made.blocks = blocks;
        made.place_blocks(random);
        made
    }

    /// A VHD that has no blocks yet.
    fn head(size: usize, block_size: usize, number: usize, has_parent: bool) -> Self {
        let mut head = Vhd::dynamic(&vec![0; size], block_size).footer(footer::UUID, &uuid(number));
        if has_parent {
            head = head.child_of(uuid(number + 1), 7, "parent.vhd", &[]);
        }
        Self {
            size,
            block_size,
            blocks: Vec::new(),
            bytes: head.bytes(),
        }
    }

    /// Puts the blocks between head and footer, in any order and with anything between them.
    fn place_blocks(&mut self, random: &mut Random) {
        let footer = self.bytes.split_off(self.bytes.len() - SECTOR);
        let mut order: Vec<_> = (0..self.blocks.len()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at as u64 + 1) as usize);
        }
        let sectors = self.block_size / SECTOR;
        for index in order {
            let Some(block) = &self.blocks[index] else {
                continue;
            };
            if random.one_in(4) {
                let gap = random.below(9) as usize * SECTOR;
                self.bytes.resize(self.bytes.len() + gap, 0xee);
            }
            let entry = (self.bytes.len() / SECTOR) as u32;
            self.bytes[TABLE + index * 4..][..4].copy_from_slice(&entry.to_be_bytes());
            let mut bitmap = vec![0; sectors.div_ceil(8).next_multiple_of(SECTOR)];
            for (sector, held) in block.iter().enumerate() {
                bitmap[sector / 8] |= u8::from(held.is_some()) << (7 - sector % 8);
            }
            self.bytes.extend(bitmap);
            // What nobody is to see.
            let data = block.iter().flat_map(|held| [held.unwrap_or(0xdd); SECTOR]);
            self.bytes.extend(data);
        }
        self.bytes.extend(footer);
    }

    /// What fills the sector at `at`, if the VHD says it.
    fn sector(&self, at: usize) -> Option<u8> {
        let block_size = if self.block_size == 0 {
            self.size
        } else {
            self.block_size
        };
        let block = self.blocks[at / block_size].as_ref()?;
        block[at % block_size / SECTOR]
    }

    fn entry(&self, block: usize) -> u32 {
        let bytes = self.bytes[TABLE + block * 4..][..4].try_into();
        u32::from_be_bytes(bytes.unwrap())
    }

    fn set_size(&mut self, size: usize, everywhere: bool) {
        let at = self.bytes.len() - SECTOR + footer::CURRENT_SIZE;
        self.bytes[at..at + 8].copy_from_slice(&(size as u64).to_be_bytes());
        self.seal_footer();
        if everywhere {
            self.copy_footer();
        }
    }

    fn seal_footer(&mut self) {
        let at = self.bytes.len() - SECTOR;
        let footer = &mut self.bytes[at..];
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }

    fn copy_footer(&mut self) {
        if self.block_size > 0 {
            let at = self.bytes.len() - SECTOR;
            let (front, footer) = self.bytes.split_at_mut(at);
            front[..SECTOR].copy_from_slice(footer);
        }
    }
}

/// Zeros, every now and then.
fn filling(random: &mut Random) -> u8 {
    match random.one_in(3) {
        true => 0,
        false => random.below(255) as u8 + 1,
    }
}
