const char *where_and_when(void) { return __FILE__ " " __DATE__ " " __TIME__; }
