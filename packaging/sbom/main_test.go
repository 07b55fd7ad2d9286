package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

func TestDocument(t *testing.T) {
	c := &contents{version: "1.2.3", revision: "abc", goVersion: "go1.26.1", arch: "arm64", programs: []program{{"broker", "00ff"}},
		modules: map[string]*debug.Module{
			"example.org/b@v1.0.0":              {Path: "example.org/b", Version: "v1.0.0", Sum: "h1:x"},
			"example.org/A@v2.0.0+incompatible": {Path: "example.org/A", Version: "v2.0.0+incompatible"},
		}}
	d := c.document()
	want := []string{"file:broker", "pkg:golang/std@1.26.1", "pkg:golang/example.org/a@v2.0.0%2Bincompatible", "pkg:golang/example.org/b@v1.0.0"}
	if got := strings.Join(d.Depends[0].DependsOn, " "); got != strings.Join(want, " ") || len(d.Components) != len(want) {
		t.Errorf("%s, want %s", got, want)
	}
	one, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := json.Marshal(c.document()); string(again) != string(one) {
		t.Error("twice the same is not the same")
	}
	for _, text := range []string{`"bomFormat":"CycloneDX"`, `"specVersion":"1.5"`, `"vcs:revision","value":"abc"`, `"version":"1.2.3"`, `"content":"00ff"`, `"go:sum","value":"h1:x"`} {
		if !strings.Contains(string(one), text) {
			t.Errorf("no %s in %s", text, one)
		}
	}
	c.programs[0].sha256 = "00fe"
	if c.document().Serial == d.Serial {
		t.Error("other programs, the same serial number")
	}
}

// TestGather: each text once, with all whose it is; a module without any is an
// error and no gap.
func TestGather(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a/LICENSE": "same\n", "b/LICENSE.txt": "same\r\n", "b/NOTICE": "of b", "c/license_test.go": "package c", "c/COPYING": "other"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dirs := map[string]string{"mod/a": dir + "/a", "mod/b": dir + "/b", "mod/c": dir + "/c"}
	b, err := gather(dirs)
	if err != nil {
		t.Fatal(err)
	}
	rule := strings.Repeat("=", 78) + "\n"
	if want := rule + "mod/a\nmod/b\n\nsame\n\n\n" + rule + "mod/b\n\nof b\n\n\n" + rule + "mod/c\n\nother\n\n\n"; string(b) != want {
		t.Errorf("%s\nwant\n%s", b, want)
	}
	if err := os.Remove(dir + "/c/COPYING"); err != nil {
		t.Fatal(err)
	}
	if _, err := gather(dirs); err == nil || !strings.Contains(err.Error(), "mod/c") {
		t.Errorf("nobody said that mod/c has no licence: %v", err)
	}
}

// TestRead: a program that holds no module is none of ours.
func TestRead(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read([]string{self}); err == nil || !strings.Contains(err.Error(), "no module") {
		t.Error(err)
	}
	if _, err := read([]string{"main.go"}); err == nil {
		t.Error("a source file is no program")
	}
	if _, err := directories(t.Context(), map[string]*debug.Module{"example.org/none@v1.0.0": {}}); err == nil || !strings.Contains(err.Error(), "go mod download") {
		t.Error(err)
	}
}
