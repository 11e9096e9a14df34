#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let fix_up = goldsmith_testkit::build::vhd::fix_up;
    goldsmith_testkit::fuzz::chain(&goldsmith_vhd::VHD, data, fix_up);
});
