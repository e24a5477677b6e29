from vlm import check_family, find_checkpoint
