package scan

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"testing"
)

type file struct {
	name string
	data []byte
}

func zipOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i, f := range files {
		m := zip.Deflate
		if i%2 == 1 {
			m = zip.Store
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: f.name, Method: m})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchives(t *testing.T) {
	body := append(append(noise(5000), client...), noise(5000)...)
	line := bytes.Count(body[:5000], []byte("\n")) + 1
	two := append(gz(t, body[:5010]), gz(t, body[5010:])...) // the value across two members
	for name, c := range map[string]struct {
		data   []byte
		member string
	}{
		"plain":        {body, ""},
		"gzip":         {gz(t, body), "gunzipped"},
		"gzip members": {two, "gunzipped"},
		"zip":          {zipOf(t, file{"x", noise(100)}, file{"y", noise(100)}, file{"d/z", body}), "d/z"},
		"zip stored":   {zipOf(t, file{"x", nil}, file{"d/z", body}), "d/z"},
		"tar in gzip":  {gz(t, append(noise(512), body...)), "gunzipped"},
		"zip in zip":   {zipOf(t, file{"i.zip", zipOf(t, file{"f", body})}), "i.zip!f"},
		"stored twice": {zipOf(t, file{"x", nil}, file{"i.zip", zipOf(t, file{"x", nil}, file{"f", body})}), "i.zip!f"},
		"three":        {gz(t, zipOf(t, file{"a.gz", gz(t, body)})), "gunzipped!a.gz!gunzipped"},
	} {
		r := run(t, config(t, index(t, client), write(t, t.TempDir(), "f", c.data)))
		if len(r.Findings) != 1 || r.NotRead != 0 {
			t.Errorf("%s: %+v", name, r)
			continue
		}
		if f := r.Findings[0]; f.Member != c.member || name != "tar in gzip" && f.Line != line {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestArchivesThatAreNotReadWholly(t *testing.T) {
	body := append([]byte(client), noise(300000)...)
	packed := gz(t, body)
	z := zipOf(t, file{"f", body})
	wrong := bytes.Clone(packed)
	wrong[len(wrong)-6]++ // the checksum
	encrypted := bytes.Clone(z)
	encrypted[6] |= 1
	encrypted[bytes.Index(z, []byte("PK\x01\x02"))+8] |= 1
	zeros := make([]byte, 80<<20)
	overlap := zipOf(t, file{"f", append(zeros[:40<<20:40<<20], client...)}, file{"x", nil}, file{"g", zeros[:30<<20]})
	four := packed
	for range 3 {
		four = gz(t, four)
	}
	for name, c := range map[string]struct {
		data  []byte
		found int
		why   string
	}{
		"truncated gzip":  {packed[:len(packed)/2], 1, "unexpected EOF"},
		"tiny":            {gz(t, []byte("abc"))[:24], 0, "unexpected EOF"},
		"wrong checksum":  {wrong, 1, "gzip: invalid checksum"},
		"corrupt gzip":    {append(packed[:len(packed)/2:len(packed)/2], noise(500)...), 1, ""},
		"no gzip":         {append([]byte("\x1f\x8b\x08\xff"), client...), 1, "damaged"},
		"trailing":        {append(gz(t, noise(900)), client...), 1, "gzip: invalid header"},
		"truncated zip":   {z[:len(z)-30], 0, "damaged"},
		"zip without end": {append([]byte("PK\x03\x04"), client...), 1, "damaged"},
		"encrypted":       {encrypted, 0, "encrypted"},
		"bomb":            {gz(t, append([]byte(client), zeros...)), 1, "far more"},
		"zip bomb":        {overlap, 1, "far more"},
		"too deep":        {four, 0, "more than three"},
		"xz":              {[]byte("\xfd7zXZ\x00" + client), 1, "xz is not unpacked"},
		"big in zip":      {zipOf(t, file{"f.zip", append(append([]byte("PK\x03\x04"), noise(33<<20)...), client...)}), 1, "32 MiB"},
	} {
		r := run(t, config(t, index(t, client), write(t, t.TempDir(), "f", c.data)))
		found := 0
		for _, f := range r.Findings {
			if !f.InName {
				found++
			}
		}
		if found != c.found || r.NotRead < 1 || !strings.Contains(fmt.Sprint(r.Unread), c.why) {
			t.Errorf("%s: %d found; %+v", name, found, r.Unread)
		}
		if r.Inside > 80<<20 {
			t.Errorf("%s: %d MiB unpacked", name, r.Inside>>20)
		}
	}
}

// A directory of a million names is not held in memory.
func TestZipDirectoryIsBounded(t *testing.T) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	name := strings.Repeat("n", 200)
	for range 40000 {
		if _, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	r := run(t, config(t, index(t, client), write(t, t.TempDir(), "f.zip", b.Bytes())))
	if r.NotRead != 1 || !strings.Contains(r.Unread[0].Reason, errDirectory.Error()) {
		t.Errorf("%d: %+v", r.NotRead, r.Unread)
	}
}

func FuzzContainers(f *testing.F) {
	f.Add(gz(f, []byte(client)))
	f.Add(zipOf(f, file{"a", []byte(client)}, file{"b", []byte(client)}))
	f.Add(zipOf(f, file{"a.gz", gz(f, []byte(client))}))
	f.Add([]byte(client))
	x := index(f, client)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := New(config(t, x))
		if err != nil {
			t.Fatal(err)
		}
		w, at := s.worker(), spot{}
		if err := w.packed(t.Context(), &at, bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
		if err := w.stream(t.Context(), at, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(client)) && s.found.Load() == 0 {
			t.Error("not found")
		}
		if err := s.worker().content(t.Context(), spot{left: new(int64)}, io.LimitReader(bytes.NewReader(data), 1<<20)); err != nil {
			t.Fatal(err)
		}
	})
}
