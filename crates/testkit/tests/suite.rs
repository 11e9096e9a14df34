//! The conformance suite passes a format that is right, and each flaw fails a test of it.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use goldsmith_block::{
    Budget, Committed, CreateSpec, Demand, Error, Extent, ExtentKind, Format, GuestRange, Layer,
    LayerInfo, Match, OptionSpec, Placement, Probe, Result, Sink, SinkProfile, Slot, Storage,
    StorageMut, ZeroPolicy,
};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::conformance;
use goldsmith_testkit::conformance::Subject;

const GRAIN: u64 = 256 << 10;
const MAGIC: [u8; 8] = *b"slate\0\0\n";
/// Where the table begins; the magic and the virtual size stand before it.
const TABLE: u64 = 16;

/// The least a format can be: magic, virtual size, and for each grain its place in the file, as
/// little-endian `u64`s, 0 for none.
struct Slate(Flaw);

/// What is wrong with a [`Slate`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    MagicBeforeCommit,
    EndOfFileReadsZero,
    PlacesByOrderOfWrites,
    StepsOfOneGrain,
    SparseGrainsCalledZero,
    WriteErrorsDropped,
    OldBytesKept,
    TableTrusted,
}

struct SlateLayer {
    info: LayerInfo,
    storage: Arc<dyn Storage>,
    table: Vec<u64>,
    flaw: Flaw,
}

struct SlateSink {
    profile: SinkProfile,
    storage: Arc<dyn StorageMut>,
    state: Mutex<State>,
    flaw: Flaw,
}

struct State {
    table: Vec<u64>,
    next: u64,
}

impl Format for Slate {
    fn name(&self) -> &'static str {
        "slate"
    }

    fn probe(&self, probe: &Probe<'_>) -> Match {
        match probe.head.starts_with(&MAGIC) {
            true => Match::Marked,
            false => Match::No,
        }
    }

    fn open(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Arc<dyn Layer>> {
        let mut head = [[0; 8]; 2];
        if storage.len() < TABLE {
            return Err(Error::corrupt("no room for a header"));
        }
        storage.read_at(0, head.as_flattened_mut())?;
        if head[0] != MAGIC {
            return Err(Error::corrupt("no magic"));
        }
        let virtual_size = u64::from_le_bytes(head[1]);
        let grains = virtual_size.div_ceil(GRAIN);
        if grains > (storage.len() - TABLE) / 8 {
            return Err(Error::corrupt("no room for the table"));
        }
        let mut bytes: Vec<[u8; 8]> = budget.zeroed(grains, "grain table")?;
        storage.read_at(TABLE, bytes.as_flattened_mut())?;
        let table = bytes.into_iter().map(u64::from_le_bytes).collect();
        let info = LayerInfo {
            format: "slate",
            virtual_size,
            unit: Some(GRAIN),
            ..LayerInfo::default()
        };
        Ok(Arc::new(SlateLayer {
            info,
            storage,
            table,
            flaw: self.0,
        }))
    }

    fn options(&self) -> &'static [OptionSpec] {
        &[]
    }

    fn size_unit(&self) -> u64 {
        512
    }

    fn create(&self, storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>> {
        let table = vec![0; spec.virtual_size.div_ceil(GRAIN) as usize];
        let next = TABLE + table.len() as u64 * 8;
        if self.0 != Flaw::OldBytesKept {
            storage.set_len(0)?;
        }
        if self.0 == Flaw::MagicBeforeCommit {
            storage.write_at(0, &[MAGIC, spec.virtual_size.to_le_bytes()].concat())?;
        }
        storage.set_len(next)?;
        Ok(Box::new(SlateSink {
            profile: SinkProfile {
                virtual_size: spec.virtual_size,
                grain: GRAIN,
                placement: Placement::Allocated,
                zeroes: ZeroPolicy::Implied,
                packing: None,
            },
            storage,
            state: Mutex::new(State { table, next }),
            flaw: self.0,
        }))
    }
}

impl Layer for SlateLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let first = (offset / GRAIN) as usize;
        let place = self.table[first];
        let grains = match place {
            0 if self.flaw != Flaw::StepsOfOneGrain => self.table[first..]
                .iter()
                .take_while(|place| **place == 0)
                .count(),
            _ => 1,
        };
        let end = ((first + grains) as u64 * GRAIN).min(limit);
        let range = GuestRange::new(offset, end);
        let host = place.wrapping_add(offset % GRAIN);
        let file_end = host.checked_add(range.len());
        let zero = ExtentKind::Zero {
            allocated: false,
            host: None,
        };
        let kind = if place == 0 {
            zero
        } else if file_end.is_none_or(|end| end > self.storage.len()) {
            match self.flaw {
                Flaw::EndOfFileReadsZero => zero,
                Flaw::TableTrusted => ExtentKind::Data { host: Some(host) },
                _ => return Err(Error::corrupt("grain past the end of the file")),
            }
        } else if self.flaw == Flaw::SparseGrainsCalledZero && self.starts_with_zeros(place)? {
            zero
        } else {
            ExtentKind::Data { host: Some(host) }
        };
        Ok(Extent { range, kind })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let end = offset + buf.len() as u64;
        while at < end {
            let extent = self.extent_at(at, end)?;
            let part = &mut buf[(at - offset) as usize..(extent.range.end - offset) as usize];
            match extent.kind {
                ExtentKind::Data { host: Some(host) } => self.storage.read_at(host, part)?,
                _ => part.fill(0),
            }
            at = extent.range.end;
        }
        Ok(())
    }
}

impl SlateLayer {
    fn starts_with_zeros(&self, place: u64) -> Result<bool> {
        let mut start = [0; 512];
        self.storage.read_at(place, &mut start)?;
        Ok(start == [0; 512])
    }
}

impl Sink for SlateSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        for demand in demands {
            for start in (demand.range.start..demand.range.end).step_by(GRAIN as usize) {
                let end = (start + GRAIN).min(demand.range.end);
                let host = state.next;
                if self.flaw != Flaw::PlacesByOrderOfWrites {
                    state.table[(start / GRAIN) as usize] = host;
                    state.next += GRAIN;
                }
                slots.push(Slot {
                    range: GuestRange::new(start, end),
                    host,
                    packed: None,
                });
            }
        }
        Ok(())
    }

    fn write(&self, mut slot: Slot, data: &[u8]) -> Result<()> {
        if self.flaw == Flaw::PlacesByOrderOfWrites {
            let mut state = self.state.lock().unwrap();
            slot.host = state.next;
            state.table[(slot.range.start / GRAIN) as usize] = slot.host;
            state.next += GRAIN;
        }
        let result = self.storage.write_at(slot.host, data);
        match self.flaw {
            Flaw::WriteErrorsDropped => Ok(()),
            _ => result,
        }
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        unreachable!("zeros are implied");
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        let state = self.state.lock().unwrap();
        self.storage.set_len(state.next)?;
        for (table_at, place) in (TABLE..).step_by(8).zip(&state.table) {
            // In a new file zeros are there already; a table of a huge disk is full of them.
            if *place != 0 || self.storage.fixed_len().is_some() {
                self.storage.write_at(table_at, &place.to_le_bytes())?;
            }
        }
        self.storage.flush()?;
        let head = [MAGIC, self.profile.virtual_size.to_le_bytes()].concat();
        self.storage.write_at(0, &head)?;
        self.storage.flush()?;
        Ok(Committed {
            file_len: state.next,
        })
    }
}

goldsmith_testkit::storage_conformance!(|| Arc::new(MemoryStorage::new("memory")), memory);
goldsmith_testkit::conformance!(&Slate(Flaw::None), right);

macro_rules! caught {
    ($($claim:ident: $flaw:ident by $module:ident::$test:ident;)*) => {
        $(
            #[test]
            #[should_panic]
            fn $claim() {
                conformance::$module::$test(&Subject {
                    format: &Slate(Flaw::$flaw),
                    variants: &[(&[], false)],
                });
            }
        )*
    };
}

caught! {
    header_before_commit_is_caught: MagicBeforeCommit by sink::uncommitted_image_does_not_open;
    zeros_for_a_missing_end_are_caught:
        EndOfFileReadsZero by layer::cut_image_is_refused_or_reads_the_same;
    file_that_depends_on_timing_is_caught:
        PlacesByOrderOfWrites by sink::order_of_writes_leaves_no_trace;
    slow_hole_is_caught: StepsOfOneGrain by layer::hole_of_a_tebibyte_costs_few_steps;
    data_called_zero_is_caught:
        SparseGrainsCalledZero by layer::extents_keep_their_contract_from_any_offset;
    unreported_failure_is_caught: WriteErrorsDropped by sink::failing_storage_is_an_io_error;
    old_bytes_are_caught: OldBytesKept by sink::old_content_of_the_storage_does_not_show;
    unchecked_table_is_caught: TableTrusted by layer::flipped_bits_get_an_answer;
}
