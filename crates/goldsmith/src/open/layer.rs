//! One image, and the file that holds its data.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Budget, Error, Layer, Result, Storage};

use crate::Opener;
use crate::filename::ImageName;
use crate::found::Found;
use crate::open::ImageFile;
use crate::reference::must_be_that_of_qemu;
use crate::watch::Tap;

impl Opener {
    /// Opens the image at `path` alone, whatever it names.
    ///
    /// # Errors
    /// `Usage` for an unknown format, and those of
    /// [`Format::open`](goldsmith_block::Format::open).
    pub fn open_alone(
        &self,
        path: impl AsRef<Path>,
        format: Option<&str>,
    ) -> Result<Arc<dyn Layer>> {
        let path = path.as_ref();
        let budget = Budget::new(&self.limits);
        self.open_image(self.open_top(path, format)?, &budget, 0)
            .map_err(|error| error.in_file(path.to_string_lossy()))
    }

    /// As [`open_alone`](Self::open_alone), where nothing else is going to be opened and the image is
    /// only asked what it is.
    pub(crate) fn inspect(&self, path: &Path, format: Option<&str>) -> Result<Arc<dyn Layer>> {
        let budget = Budget::new(&self.limits);
        let ImageFile { storage, format } = self.open_top(path, format)?;
        if !format.unpacks() {
            self.all_open(&[])?;
        }
        let options = self.options_for(format, 0)?;
        let layer = format.inspect(storage, &budget, &options);
        let layer = layer.map_err(|error| error.in_file(path.to_string_lossy()))?;
        if format.unpacks() {
            self.all_open(&[])?;
        }
        Ok(layer)
    }

    /// Opens the image in `file` with the options that are meant for the one at `depth`.
    pub(super) fn open_image(
        &self,
        file: ImageFile,
        budget: &Budget,
        depth: usize,
    ) -> Result<Arc<dyn Layer>> {
        let ImageFile {
            mut storage,
            format,
        } = file;
        if format.unpacks() {
            storage = Tap::new(self.cancel.as_ref()).reading(storage);
        }
        let options = self.options_for(format, depth)?;
        match (self.heads_only, self.extents_only) {
            (true, _) => format.inspect(storage, budget, &options),
            (_, true) => format.survey(storage, budget, &options),
            _ if self.salvages => format.salvage(storage, budget, &options),
            _ => format.open_with(storage, budget, &options),
        }
    }

    /// Gives `layer`, the image at `path`, the file that holds its data, if it needs one.
    pub(super) fn with_data(&self, path: &Path, layer: Arc<dyn Layer>) -> Result<Arc<dyn Layer>> {
        if self.heads_only {
            return Ok(layer);
        }
        match self.data_file(path, &*layer)? {
            Some(found) => {
                let data = self.read_found(&found)?;
                refuse_itself(&*layer, &data)?;
                self.lock(&data)?;
                layer.with_data(Arc::new(data))
            }
            None => Ok(layer),
        }
    }

    /// The file that holds the data of `layer`, the image at `path`, if it needs one and that may be
    /// opened.
    pub(crate) fn data_file(&self, path: &Path, layer: &dyn Layer) -> Result<Option<Found>> {
        let Some(name) = layer.info().data_file.as_deref() else {
            return Ok(None);
        };
        let Some(name) = ImageName::parse(name)?.into_plain() else {
            let text = format!("the data file '{name}' is no plain path");
            return Err(Error::unsupported(text));
        };
        let name = name.to_string_lossy();
        let from = (path, &**layer.storage());
        let found = Found::by_image(self.references, from, &name, "data file")?;
        must_be_that_of_qemu("data file", Path::new(&*name), found.path())?;
        Ok(Some(found))
    }
}

/// Whether `data` is another file than that of `layer`, whose data it is said to be.
pub(crate) fn refuse_itself(layer: &dyn Layer, data: &dyn Storage) -> Result<()> {
    if data.id() != layer.storage().id() {
        return Ok(());
    }
    let text = format!("the data file '{}' is the image itself", data.name());
    Err(Error::corrupt(text))
}
