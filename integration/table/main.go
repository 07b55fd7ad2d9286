// Table prints what the integration suite ran, and fails if something that
// integration/expected.d names is missing, or did not pass.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

type row struct{ Area, Server, What, Result, Took string }

func (r row) key() string { return r.Area + " | " + r.Server + " | " + r.What }

func main() {
	ran, err := rows(".real/results/rows.jsonl")
	if err == nil {
		err = report(ran)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		os.Exit(1)
	}
}

func rows(file string) ([]row, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []row
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, lines.Err()
}

func report(ran []row) error {
	expected, err := expectations()
	if err != nil {
		return err
	}
	slices.SortFunc(ran, func(a, b row) int { return cmp.Compare(a.key(), b.key()) })
	seen := map[string]bool{}
	bad := 0
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "AREA\tSERVER\tWHAT\tRESULT\tTOOK")
	for _, r := range ran {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Area, r.Server, r.What, r.Result, r.Took)
		seen[r.key()] = true
		if r.Result != "ok" {
			bad++
		}
	}
	for _, e := range expected {
		if !seen[e] {
			fmt.Fprintf(w, "%s\tMISSING\t\n", strings.ReplaceAll(e, " | ", "\t"))
			bad++
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := notes(); err != nil {
		return err
	}
	for _, r := range ran {
		if !slices.Contains(expected, r.key()) {
			fmt.Printf("not in integration/expected.d: %s\n", r.key())
			bad++
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d rows are missing, failed or unexpected", bad)
	}
	fmt.Printf("%d passed, 0 failed\n", len(ran))
	return nil
}

// notes prints what tests kept beside their rows: lists, timelines.
func notes() error {
	files, err := filepath.Glob(".real/results/*.txt")
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		fmt.Printf("\n%s\n%s\n", strings.ToUpper(strings.TrimSuffix(filepath.Base(f), ".txt")), text)
	}
	return nil
}

func expectations() (list []string, err error) {
	files, err := filepath.Glob("integration/expected.d/*.txt")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				list = append(list, line)
			}
		}
	}
	return list, nil
}
