#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    goldsmith_testkit::fuzz::open_read(&goldsmith_vhd::VHD, data);
});
