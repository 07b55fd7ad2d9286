//go:build !race

package scan

const lighter = 1
