//! A fixed image: the footer moves with the end of the disk.

use std::sync::Arc;

use goldsmith_block::{
    Checked, Committed, Demand, Edit, Editor, Error, GuestRange, HostRange, Layer, Placement,
    Preallocation, Repair, Result, SECTOR, Scribe, Sink, SinkProfile, Slot, Step, StorageMut,
    ZeroPolicy, Zeroing,
};
use zerocopy::IntoBytes;

use super::blocks::is_zero_in;
use super::{check_aligned, check_size, check_whole, refuse_damage, resized, unsupported};
use crate::error::VhdError;
use crate::footer::{Found, SizeRule};
use crate::layer::{FixedLayer, Opened};
use crate::ondisk::{FOOTER_LEN, RawFooter};

/// See the module.
pub(super) struct FixedEditor {
    scribe: Scribe,
    rule: SizeRule,
    footer: RawFooter,
    /// Where the footer stands.
    end: u64,
    layer: Arc<FixedLayer>,
    damage: Checked,
}

impl FixedEditor {
    pub(super) fn new(
        storage: Arc<dyn StorageMut>,
        rule: SizeRule,
        found: Found,
        layer: Arc<FixedLayer>,
        damage: Checked,
    ) -> Self {
        Self {
            scribe: Scribe::new(storage),
            rule,
            footer: found.raw,
            end: found.data_end,
            layer,
            damage,
        }
    }

    fn virtual_size(&self) -> u64 {
        self.layer.info.virtual_size
    }

    fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        check_size(size)?;
        let old = self.virtual_size();
        check_whole(old)?;
        // A footer in the place of this one would be half over it.
        check_aligned("footer", self.end)?;
        self.check_one_size()?;
        let footer = resized(&self.footer, size);
        if size < old {
            self.scribe.storage().may_stop(false);
            self.write_footer(self.end, &footer)?;
        } else if size > old {
            // What stands behind the disk is not a part of it, so it goes first.
            self.cut_to(old)?;
            self.footer_behind(size)?;
            self.fill(HostRange::new(old, size - old), preallocation)?;
            self.scribe.barrier()?;
            self.scribe.storage().may_stop(false);
            self.write_footer(self.end, &footer)?;
        }
        self.footer = footer;
        self.cut_to(size)
    }

    /// Refuses to cut off or fill what those take for the disk's who go by its other size.
    fn check_one_size(&self) -> Result<()> {
        let (virtual_size, other) = (self.virtual_size(), self.layer.reach);
        let between = HostRange::new(virtual_size, other - virtual_size);
        match is_zero_in(&*self.scribe.read(), between)? {
            true => Ok(()),
            false => Err(VhdError::TwoSizes {
                virtual_size,
                other,
            }
            .into()),
        }
    }

    /// Writes the footer of the disk as it is at `end` too, which makes the file longer.
    fn footer_behind(&mut self, end: u64) -> Result<()> {
        let footer = self.footer.clone();
        self.end = end;
        self.write_footer(end, &footer)
    }

    fn write_footer(&self, at: u64, footer: &RawFooter) -> Result<()> {
        let len = self.scribe.storage().len();
        let written = self.scribe.write("footer", at, footer.as_bytes());
        if written.is_err() && at + FOOTER_LEN > len {
            // Half a footer at the end would hide the whole one that stands where the end was. If this
            // fails, too, the first failure is still the one to be told.
            let _ = self.scribe.set_len(len);
        }
        written?;
        self.scribe.barrier()
    }

    /// Makes the file end with a footer at `end`, at or before the one it has.
    fn cut_to(&mut self, end: u64) -> Result<()> {
        if self.end == end && self.scribe.storage().len() == end + FOOTER_LEN {
            return Ok(());
        }
        let footer = self.footer.clone();
        self.write_footer(end, &footer)?;
        self.end = end;
        self.scribe.set_len(end + FOOTER_LEN)?;
        self.scribe.barrier()
    }

    /// Makes `range`, which ends at the footer, zeros.
    fn fill(&self, range: HostRange, preallocation: Preallocation) -> Result<()> {
        match preallocation {
            // The rest is a hole already.
            Preallocation::Off | Preallocation::Metadata => {
                let old_footer = HostRange::new(range.offset, range.len.min(FOOTER_LEN));
                self.scribe.zero("disk", old_footer, Zeroing::Punch)
            }
            Preallocation::Falloc => self.scribe.zero("disk", range, Zeroing::Keep),
            Preallocation::Full => super::blocks::write_zeros(&self.scribe, range),
        }
    }

    /// Cuts off the zeros behind the footer, if that is what is wrong.
    fn repair(&mut self, repair: Repair) -> Result<()> {
        if self.damage.corruptions > 0 && repair == Repair::All {
            self.scribe.storage().may_stop(false);
            self.scribe.set_len(self.end + FOOTER_LEN)?;
            self.scribe.barrier()?;
            self.damage = Checked::default();
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<()> {
        let budget = super::image::unlimited();
        match Opened::open(self.scribe.read(), &budget, self.rule)? {
            Opened::Fixed(layer) => self.layer = layer,
            Opened::Dynamic(..) => {
                return Err(Error::new(
                    goldsmith_block::ErrorKind::Bug,
                    "a fixed image became a dynamic one",
                ));
            }
        }
        Ok(())
    }
}

impl Editor for FixedEditor {
    fn layer(&self) -> Arc<dyn Layer> {
        self.layer.clone()
    }

    fn edit(&mut self, edit: &Edit) -> Result<()> {
        if let Edit::Repair(repair) = edit {
            self.repair(*repair)?;
            return self.refresh();
        }
        refuse_damage(&self.damage)?;
        match edit {
            Edit::Resize {
                virtual_size,
                preallocation,
                ..
            } => {
                super::refuse_rule(self.rule)?;
                self.resize(*virtual_size, *preallocation)?;
            }
            Edit::SetBacking(None) => {}
            other => return Err(unsupported(other)),
        }
        self.refresh()
    }

    fn into_sink(self: Box<Self>, len: u64) -> Result<Box<dyn Sink>> {
        refuse_damage(&self.damage)?;
        super::check_reach(len, self.virtual_size())?;
        Ok(Box::new(FixedSink {
            storage: Arc::clone(self.scribe.storage()),
            profile: SinkProfile {
                virtual_size: len,
                grain: SECTOR,
                placement: Placement::Identity,
                zeroes: ZeroPolicy::Covering,
                packing: None,
            },
        }))
    }

    fn steps(&self) -> Vec<Step> {
        self.scribe.steps()
    }
}

/// Writes over the disk of a fixed image.
struct FixedSink {
    storage: Arc<dyn StorageMut>,
    profile: SinkProfile,
}

impl Sink for FixedSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        slots.extend(demands.iter().map(Demand::in_place));
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        let range = HostRange::new(range.start, range.len());
        self.storage.zero(range, Zeroing::Punch)
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.storage.write_at(slot.host, data)
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        Some(&*self.storage)
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        self.reserve_zeroes(range)
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        self.storage.flush()?;
        Ok(Committed {
            file_len: self.storage.len(),
        })
    }
}
