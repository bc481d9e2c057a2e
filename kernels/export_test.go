package kernels

// Rate is rate, for benchmarks outside the package.
var Rate = rate
var CPUTime = cpuTime
