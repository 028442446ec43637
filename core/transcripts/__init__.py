"""What was heard, and the files that people expect of it: txt, json, srt, vtt, tsv."""
