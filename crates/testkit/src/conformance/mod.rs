//! What every format and every storage must keep to, as tests that are written once.
//!
//! ```text
//! conformance!(&FORMAT, module);
//! conformance!(&FORMAT, module, [(&[], false), (&[("cluster_size", "4k")], true)]);
//! storage_conformance!(|| Arc::new(MyStorage::new()), module);
//! ```
//!
//! Each row of the list is a set of creation options and whether to compress; every test runs with
//! every row. What cannot hold for a format without a mark of its own (a cut raw image is another
//! raw image) is left out by asking its probe.

use goldsmith_block::{Format, Match};
use proptest::test_runner::{Config, TestRunner};

use crate::image;
use crate::model::ModelDisk;
use crate::pattern::disk;

pub mod layer;
pub mod sink;
pub mod storage;

/// Creation options, and whether to compress.
pub type Variant = (&'static [(&'static str, &'static str)], bool);

/// A format under test.
#[derive(Clone, Copy)]
pub struct Subject {
    /// The format.
    pub format: &'static dyn Format,
    /// The option sets to test it with.
    pub variants: &'static [Variant],
}

/// A format with one set of options.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    format: &'static dyn Format,
    options: &'static [(&'static str, &'static str)],
    compress: bool,
}

impl Subject {
    pub(crate) fn cases(&self) -> impl Iterator<Item = Case> {
        let format = self.format;
        self.variants.iter().map(move |(options, compress)| Case {
            format,
            options,
            compress: *compress,
        })
    }
}

impl Case {
    fn write(&self, disk: &ModelDisk) -> Vec<u8> {
        match image::write(self.format, disk, self.options, self.compress) {
            Ok(image) => image,
            Err(error) => panic!("{self:?} cannot write {disk:?}: {error:?}"),
        }
    }

    fn spec(&self, disk: &ModelDisk) -> goldsmith_block::CreateSpec {
        image::spec(self.format, disk.len(), self.options, self.compress).unwrap()
    }

    /// Whether images of this format can be told from any bytes.
    fn is_marked(&self) -> bool {
        crate::hostile::probe(self.format, &self.write(&disk("4k:A"))) == Match::Marked
    }

    /// Bytes that this format allocates together, or a guess where it has no such unit.
    fn unit(&self) -> u64 {
        let layer = image::open(self.format, self.write(&disk("4k:A"))).unwrap();
        layer.info().unit.unwrap_or(64 << 10)
    }

    /// A disk of some units and a bit, with every fill, borders on and off the units, and at least
    /// one unit without data.
    fn mixed_disk(&self) -> ModelDisk {
        let unit = self.unit().min(2 << 20);
        let half = unit / 2;
        disk(&format!(
            "4608:A 3584:- {unit}:- 512:b {half}:C 1536:0 {unit}:0 {unit}:- {half}:d 8k:- 512:E"
        ))
    }

    /// Enough bytes for a few units, but never too many for a quick test.
    fn some_units(&self) -> u64 {
        (self.unit() * 5 / 2).clamp(192 << 10, 5 << 20)
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let packed = if self.compress { " -c" } else { "" };
        write!(f, "{} {:?}{packed}", self.format.name(), self.options)
    }
}

/// A runner for `cases` cases that keeps no files about failures: they name the disk.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    })
}

/// The tests that every format passes; see the module of that name.
#[macro_export]
macro_rules! conformance {
    ($format:expr, $name:ident) => {
        $crate::conformance!($format, $name, [(&[], false)]);
    };
    ($format:expr, $name:ident, $variants:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn subject() -> $crate::conformance::Subject {
                const VARIANTS: &[$crate::conformance::Variant] = &$variants;
                $crate::conformance::Subject {
                    format: $format,
                    variants: VARIANTS,
                }
            }

            $crate::conformance!(@tests layer
                any_disk_reads_as_it_was_written
                tiny_disks_read_as_they_were_written
                extents_keep_their_contract_from_any_offset
                any_part_reads_as_the_whole_does
                hole_of_a_tebibyte_costs_few_steps
                many_threads_read_the_same
                own_image_is_recognised
                probe_survives_any_bytes
                cut_image_is_refused_or_reads_the_same
                flipped_bits_get_an_answer
                failing_read_is_an_io_error_and_not_remembered
                file_that_shrank_is_an_io_error_or_reads_the_same
            );
            $crate::conformance!(@tests sink
                every_option_has_a_default
                order_of_writes_leaves_no_trace
                length_of_demands_leaves_no_trace
                reserving_backwards_leaves_no_trace_under_identity
                disk_in_any_order_is_the_same_disk
                old_content_of_the_storage_does_not_show
                device_holds_the_disk_or_is_refused
                device_that_is_too_small_is_an_error
                uncommitted_image_does_not_open
                uncommitted_image_over_an_old_one_does_not_open
                failing_storage_is_an_io_error
            );
        }
    };
    (@tests $module:ident $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                $crate::conformance::$module::$test(&subject());
            }
        )*
    };
}

/// The tests that every storage passes. `$blank` is called for a new, empty, blank
/// `Arc<impl StorageMut>`, which each test drops when it is done.
#[macro_export]
macro_rules! storage_conformance {
    ($blank:expr, $name:ident) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::storage_conformance!(@tests $blank;
                blank_storage_is_empty
                bytes_come_back_where_they_were_put
                read_past_the_end_is_an_io_error
                growing_adds_zeros_and_shrinking_forgets
                zeroed_range_reads_zero_and_nothing_else_changes
                any_history_reads_as_a_vec_would
                spans_keep_their_contract
                threads_write_side_by_side
                identity_is_ones_own
            );
        }
    };
    (@tests $blank:expr; $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                $crate::conformance::storage::$test(&mut || {
                    let storage: ::std::sync::Arc<dyn ::goldsmith_block::StorageMut> = $blank();
                    storage
                });
            }
        )*
    };
}
