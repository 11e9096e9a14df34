//! The disk that is converted.

use std::sync::Arc;

use goldsmith_block::{Chain, Error, Format, GuestRange, Result, SECTOR, align_up};

use crate::bitmap::Bitmaps;
use crate::convert::{Convert, Source};
use crate::open::ImageFile;
use crate::salvage::{Losses, Salvage};
use crate::splice::Splice;

impl Convert<'_> {
    /// The disk to be converted.
    pub(crate) fn source(&self) -> Result<Chain> {
        self.whole(&self.disks()?).map(|(source, _)| source)
    }

    /// The disks of all sources.
    pub(crate) fn disks(&self) -> Result<Vec<Chain>> {
        self.disks_in(self.files()?)
    }

    /// The files of all sources: what they are is found out once, and what was looked at is read.
    pub(super) fn files(&self) -> Result<Vec<ImageFile>> {
        let open = |source: &Source| {
            source
                .opener
                .open_top(&source.path, source.format.as_deref())
        };
        self.sources.iter().map(open).collect()
    }

    /// The disks in `files`, those of all sources.
    pub(super) fn disks_in(&self, files: Vec<ImageFile>) -> Result<Vec<Chain>> {
        let sources = self.sources.iter().zip(files);
        let disks = sources.map(|(source, file)| {
            // Who wants all bitmaps wants to know that they are gone.
            let salvages = self.salvage && self.bitmaps != Bitmaps::All;
            let opener = source.opener.stopped_by(self.job.cancel);
            let opener = opener.salvaging(salvages);
            opener.open_from(&source.path, file)
        });
        disks.collect()
    }

    /// The disk that `disks`, those of all sources, make, and what it turns out to have lost.
    pub(crate) fn whole(&self, disks: &[Chain]) -> Result<(Chain, Arc<Losses>)> {
        let losses = Arc::new(Losses::default());
        let mut readable = disks.to_vec();
        if self.salvage {
            let mut start = 0_u64;
            for disk in &mut readable {
                let salvage = Salvage::new(disk.clone(), start, Arc::clone(&losses));
                // Too much of it is refused below.
                let len = align_up(disk.virtual_size(), SECTOR).unwrap_or(u64::MAX);
                start = start.saturating_add(len);
                *disk = Chain::new(Arc::new(salvage), []);
            }
        }
        let mut whole = match &readable[..] {
            [disk] => disk.clone(),
            disks => Chain::new(Arc::new(Splice::join(disks)?), []),
        };
        let size = whole.virtual_size();
        let end = self.part.1.min(size);
        let part = GuestRange::new(self.part.0.min(end), end);
        if part.len() < size {
            whole = Chain::new(Arc::new(Splice::cut(&whole, part)?), []);
        }
        Ok((whole, losses))
    }

    /// What is wrong with the source, that the disk grew if nobody asked for it by name, and that others
    /// misread the target if the disk begins as `misread` says.
    pub(crate) fn warnings(
        &self,
        disks: &[Chain],
        source: &Chain,
        virtual_size: u64,
        misread: Misread,
    ) -> Vec<String> {
        let warnings = disks.iter().flat_map(Chain::warnings);
        let mut warnings: Vec<_> = warnings.cloned().collect();
        let top = disks[0].top();
        let skipped = top.info().bitmaps.iter();
        let skipped = skipped.filter(|info| self.bitmaps == Bitmaps::Sound && info.inconsistent);
        warnings.extend(skipped.map(|info| {
            let (name, file) = (&info.name, top.storage().name());
            format!("{file}: the bitmap '{name}' was not saved properly, and is not copied")
        }));
        let size: u64 = disks.iter().map(Chain::virtual_size).sum();
        let (start, end) = (self.part.0, self.part.1.min(size));
        if start > end {
            let path = self.sources[0].path.display();
            warnings.push(format!(
                "{path}: cannot skip to specified offset {start}: what there is to read ends at {end}"
            ));
        }
        let added = virtual_size - source.virtual_size();
        if let Some(cloud) = self.cloud
            && added > 0
        {
            warnings.push(format!(
                "{}: the disk grew by {added} zero bytes to {virtual_size}, a size that {} takes",
                self.target.display(),
                cloud.name
            ));
        }
        if let Some((mark, why)) = misread
            && begins_with(source, mark)
        {
            warnings.push(format!("{}: {why}", self.target.display()));
        }
        warnings
    }

    /// How the disk in a new target must begin so that other programs find another one there.
    pub(crate) fn misread(&self) -> Misread {
        let format = self.format().ok()?;
        format.misread(&self.options(format).ok()?)
    }

    /// The size of the target's disk: `size`, the source's, or rounded up if that is needed and allowed.
    pub(crate) fn virtual_size(&self, size: u64, format: &dyn Format) -> Result<u64> {
        let made = self.size_taken(size, format)?;
        match self.size.filter(|asked| ![size, made].contains(asked)) {
            None => Ok(made),
            // [qemu] It takes any, and makes the source's size of it.
            Some(asked) => Err(Error::usage(format!(
                "the disk has {size} bytes, and 'size' asks for {asked}; goldsmith resize gives the \
                 target another size"
            ))),
        }
    }

    fn size_taken(&self, size: u64, format: &dyn Format) -> Result<u64> {
        let unit = format.size_unit();
        if let Some(cloud) = self.cloud {
            return cloud
                .disk_size(size)
                .map_err(|error| error.in_file(self.sources[0].path.to_string_lossy()));
        }
        if size.is_multiple_of(unit) {
            return Ok(size);
        }
        let missing = unit - size % unit;
        if self.round_up {
            return Ok(size + missing);
        }
        Err(Error::usage(format!(
            "the disk has {size} bytes, and {} images hold multiples of {unit} bytes; allow \
             rounding up (--round-up) to add {missing} zero bytes",
            format.name()
        ))
        .in_file(self.sources[0].path.to_string_lossy()))
    }
}

/// What a disk begins with that makes other programs read another one, and why they do; see
/// [`Format::misread`].
pub(crate) type Misread = Option<(&'static [u8], &'static str)>;

fn begins_with(disk: &Chain, mark: &[u8]) -> bool {
    let mut head = vec![0; mark.len()];
    disk.virtual_size() >= mark.len() as u64 && disk.read_at(0, &mut head).is_ok() && head == mark
}
