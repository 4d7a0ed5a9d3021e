"""A file <-> arrays with honest time stamps.

By which clock were the published checkpoints trained? Their code reads files by `torchvision.io.read_video`, and its
accuracy@1 fell from 56% to 36% when PyAV was updated past 9.0, while the accuracy within one class stayed. That is what
a constant shift of less than a class would do, and there is one:

- `read_video` seeks to time 0 of the sound before it decodes. FFmpeg 4.2 then drops the encoder's delay a second time:
  the seek has already left out the packet of delay that AAC starts with, and yet as many samples of true sound are
  dropped (`mov_read_seek` of that time). Since then FFmpeg counts from where the seek landed.
- Measured on a prepared VGGSound clip whose edit list states 1,024 samples of delay: after a seek to 0, the sound of
  FFmpeg 4.2.2 begins at sample 1,024 of what FFmpeg 7.0.2 and the installed PyAV give, which begin at 0. Without the
  seek all three agree. PyAV's wheels had FFmpeg 4.3 in version 8.1 and 4.4 in 9.0.2; in which release between 4.2 and
  7.0 the change came has not been measured.
- So checkpoints that were trained on such files by such a stack have heard all sound 1,024 samples (64 ms, a third of
  a class) EARLY. The guess that the delay was kept, which would have made it late, does not hold.
- It depends on the file: the prepared LRS3 clip at hand states no delay, and there nothing is dropped twice.
- The parity figures of `real_clip` were made on honest time: their spectrogram fits ours to 3e-4 on average, and
  1,024 samples to either side it is off by 0.14.

This package never shifts by itself. To give a checkpoint the sound that it was trained on, move the sound 1,024 samples
earlier where the model is used: `load(path, audio_shift_samples=-1024)`. That this brings back the published accuracy
has not been shown here: it takes the published weights and test clips.
"""
