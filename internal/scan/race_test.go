//go:build race

package scan

// lighter divides the sizes of tests: the race detector makes a scan ten times as slow.
const lighter = 16
