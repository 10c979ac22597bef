"""Which steps of which clips calibrate the quantisation, and the archive of them that the compiler reads."""
