"""The shell: `pcdm train ...`, `python -m pcdm_lib train ...`. One file a group of commands."""
