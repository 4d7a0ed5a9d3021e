"""Raw videos to record shards, and the data set that needs no videos.

    python -m data_prep.folder VIDEOS OUT
    python -m data_prep.audioset VIDEOS OUT --train unbalanced_train_segments.csv --valid balanced_train_segments.csv \\
      --test eval_segments.csv --classes class_labels_indices.csv
    python -m data_prep.vggsound VIDEOS OUT --list vggsound.csv [--valid vggsound_valid.txt] [--sparse CLASSES.csv]
    python -m data_prep.lrs3 VIDEOS OUT [--train lrs3_train.txt --valid lrs3_valid.txt --test lrs3_test.txt]
    python -m data_prep.procedural OUT

All but the last share their options (`--help`). Each turns the clips that it finds into 25 fps, a shorter side of 256
pixels and 16 kHz mono, and writes OUT/NAME/1.0.0 in the layout of TensorFlow Datasets:

    NAME-train.tfrecord-00000-of-00032   records, or with --format array_record ArrayRecord; an .index beside each
    dataset_info.json, features.json     by which TFDS opens the folder
    manifest.json                        options, and of each shard its bytes, records and SHA-256
    rejected.jsonl                       every clip that was left out and why: short, still, silent, broken, excluded
    missing.jsonl                        clips of the lists that have no file, if there are any

Files may be called ID_startms_endms, ID_start_end, ID_start (000030, 30 or 30000) or, for whole videos from which the
segment is cut, ID; LRS3's keep their paths. `--exclude LIST` leaves out the clips of a published list of bad ones;
`--dry-run` tells what would be done and how many bytes it takes.

Whatever interrupts it, the same command goes on: a shard is there whole or not at all, only what is missing or has
changed is made, and the bytes are those of an undisturbed run. See `pipeline` for other machines.

    `sources`, `lists`     which videos there are, by folder or by list
    `clips`                one video to one record
    `plan`, `workers`      which clip goes into which shard; a shard made whole
    `pipeline`             shards side by side, by Beam
    `frontend`, `report`, `run_control`   what the commands share
"""
