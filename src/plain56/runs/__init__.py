"""Run and sweep directories: all that training, sweeps and figures share. Only these modules know their files."""

from plain56.runs.files import finite, flatten, is_count, read_json, read_table, user_path, write_bytes, write_table, write_text
from plain56.runs.groups import cell, config_columns, differing_keys, family, group_keys, grouped, label, short_names
from plain56.runs.keys import OPEN_KEY, override, renamed, upgraded
from plain56.runs.run import COMPLETE, ENDED, Held, Run, Status, check_identity, hold, read_run
from plain56.runs.sweep import (
    NAME,
    NAMES_ARE,
    SweepRun,
    is_name,
    is_sweep,
    read_any,
    read_summary,
    read_sweep,
    require_sweep,
    write_summary,
    write_sweep,
)
