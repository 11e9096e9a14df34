//! What all that makes a new image has in common.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{BackingReference, Error, Format, Result, StorageMut};
use goldsmith_storage::{MemoryStorage, Rehearsal};
use uuid::Uuid;

/// Where the UUID of a new image comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Identity {
    #[default]
    Random,
    Name,
    Given(Uuid),
}

impl Identity {
    /// The UUID of the new image of this format at `path`, whose disk has `virtual_size` bytes; `created` is
    /// the time that the caller gave for it.
    pub(crate) fn uuid(
        self,
        path: &Path,
        format: &dyn Format,
        virtual_size: u64,
        created: Option<u64>,
    ) -> Uuid {
        match self {
            Self::Random => Uuid::new_v4(),
            Self::Given(uuid) => uuid,
            Self::Name => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let created = created.map_or(String::new(), |it| it.to_string());
                let format = format.name();
                let text = format!("goldsmith:{format}:{virtual_size}:{created}:{name}");
                Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes())
            }
        }
    }

    /// `uuid`, and for one that comes from a name another one over each parent: the names, and all else
    /// that it comes from, may be the same.
    pub(crate) fn over(self, parent: Option<&BackingReference>, uuid: Uuid) -> Uuid {
        match (self, parent.and_then(|it| it.uuid)) {
            (Self::Name, Some(parent)) => Uuid::new_v5(&parent, uuid.as_bytes()),
            _ => uuid,
        }
    }
}

/// Fails if `options` name a backing file and `format` knows none.
pub(crate) fn backing_must_fit(format: &dyn Format, options: &[(String, String)]) -> Result<()> {
    let takes_backing = format.options().iter().any(|it| it.name == "backing_file");
    if takes_backing || !options.iter().any(|(key, _)| key == "backing_file") {
        return Ok(());
    }
    let name = format.name();
    let text = format!("Backing file not supported for file format '{name}'");
    Err(Error::usage(text))
}

/// A new file that nobody is going to see.
pub(crate) fn imagined(path: &Path) -> Arc<dyn StorageMut> {
    let nothing = MemoryStorage::new(path.to_string_lossy());
    Arc::new(Rehearsal::new(Arc::new(nothing)))
}

/// The methods of every builder of a new image; `options`, `secrets`, `identity` and `timestamp` are
/// fields of it.
macro_rules! new_image_methods {
    () => {
        /// Sets one creation option of the new image's format; the last value of a key wins.
        #[must_use]
        pub fn option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
            self.options.push((key.into(), value.into()));
            self
        }

        /// Adds a passphrase, which creation options name by `id`. Those of images that are read are
        /// their [opener](crate::Opener::secret)'s.
        #[must_use]
        pub fn secret(mut self, id: impl Into<String>, text: impl Into<String>) -> Self {
            self.secrets.insert(id.into(), text.into());
            self
        }

        /// Makes the new image show the image `name`, a path from the new one's directory, where it
        /// holds nothing itself; of what is converted it gets only what differs then. `format` is
        /// that image's.
        #[must_use]
        pub fn backing(self, name: impl Into<String>, format: impl Into<String>) -> Self {
            self.option("backing_file", name)
                .option("backing_fmt", format)
        }

        /// Sets the new image's identity, for formats that have one. Default: a random one.
        #[must_use]
        pub fn uuid(mut self, uuid: uuid::Uuid) -> Self {
            self.identity = crate::new_image::Identity::Given(uuid);
            self
        }

        /// Derives the new image's identity from its file name, its format, the size of its disk, the
        /// [time](Self::timestamp) that it is given and the identity of what stands behind it, so that the
        /// same build gives the same bytes.
        #[must_use]
        pub fn uuid_from_name(mut self) -> Self {
            self.identity = crate::new_image::Identity::Name;
            self
        }

        /// Sets the new image's time of creation, in seconds since 1970-01-01 UTC, for formats that
        /// keep it. Default: now.
        #[must_use]
        pub fn timestamp(mut self, seconds: u64) -> Self {
            self.timestamp = Some(seconds);
            self
        }
    };
}
pub(crate) use new_image_methods;
