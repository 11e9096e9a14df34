#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    goldsmith_testkit::build::vhd::fix_up(&mut file);
    goldsmith_testkit::fuzz::differential(&goldsmith_vhd::VHD, &file, goldsmith_testkit::slow::vhd);
});
