package intake

import (
	"archive/zip"
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/internal/secret"
)

const fixtureFound = "client_id=" + fixtureID + "\nclient_secret=" + fixtureSecret

// TestFixtures reads what three other programs wrote.
func TestFixtures(t *testing.T) {
	const notText = "! logo.png is a picture (type the values over)\n! brief.pdf is a PDF (open it and paste the values)"
	for name, want := range map[string]string{
		"7zip-AES128.zip": fixtureFound, "7zip-AES128-stored.zip": fixtureFound,
		"7zip-AES192.zip": fixtureFound, "7zip-AES192-stored.zip": fixtureFound,
		"7zip-AES256.zip": fixtureFound, "7zip-AES256-stored.zip": fixtureFound,
		"7zip-ZipCrypto.zip": fixtureFound, "7zip-ZipCrypto-stored.zip": fixtureFound,
		"bsdtar-aes128.zip": fixtureFound, "bsdtar-aes128-tiny.zip": fixtureFound,
		"bsdtar-aes256.zip": fixtureFound, "bsdtar-aes256-tiny.zip": fixtureFound,
		"bsdtar-traditional.zip": fixtureFound, "bsdtar-traditional-tiny.zip": fixtureFound,
		"infozip.zip": fixtureFound, "infozip-pipe.zip": fixtureFound, "plain.zip": fixtureFound,
		"infozip-utf8.zip":      fixtureFound,
		"infozip-cp437.zip":     fixtureFound + "\n! The password opened the archive in code page 437.",
		"infozip-latin1.zip":    fixtureFound + "\n! The password opened the archive in Windows-1252.",
		"nested.zip":            fixtureFound,
		"noise.zip":             fixtureFound,
		"picture-and-text.zip":  "client_id=" + fixtureID + "\nclient_secret=sMadeUpByATest0000000000\n" + notText,
		"nested-twice.zip":      string(TooLarge),
		"two-passwords.zip":     string(Unsupported),
		"bzip2.zip":             string(Unsupported),
		"office.docx":           string(Unsupported),
		"bomb-ratio.zip":        string(TooLarge),
		"bomb-size.zip":         string(TooLarge),
		"many.zip":              string(TooLarge),
		"traversal.zip":         string(Suspicious),
		"traversal-windows.zip": string(Suspicious),
		"absolute.zip":          string(Suspicious),
		"drive.zip":             string(Suspicious),
		"symlink.zip":           string(Suspicious),
	} {
		t.Run(name, func(t *testing.T) {
			password := fixturePassword
			if strings.HasPrefix(name, "infozip-") && name != "infozip-pipe.zip" {
				password = "café-2026"
			}
			f, err := readBytes(fixture(t, name), password, password, password)
			if got := show(f, err); got != want {
				t.Errorf("got %s (%v)\nwant %s", got, err, want)
			}
			wantNothingSecret(t, f, err, password)
		})
	}
	all, err := filepath.Glob("testdata/*.*")
	if err != nil || len(all) != 35+1 {
		t.Errorf("%d files in testdata, %v: name each in this test", len(all), err)
	}
}

// wantNothingSecret looks for values where people read.
func wantNothingSecret(t *testing.T, f Found, err error, more ...string) {
	t.Helper()
	texts := append([]string{}, f.Notes...)
	if err != nil {
		texts = append(texts, err.Error())
	}
	for _, d := range f.Doubts {
		texts = append(texts, d.Why)
		for _, c := range d.Candidates {
			texts = append(texts, c.Label, c.Place)
		}
	}
	for _, s := range append(more, fixtureID, fixtureSecret, "MadeUp") {
		for _, text := range texts {
			if strings.Contains(text, s) {
				t.Errorf("%q shows a value", text)
			}
		}
	}
}

func TestPasswordIsAskedAtMostThreeTimes(t *testing.T) {
	for _, c := range []struct {
		file      string
		passwords []string
		asked     int
		want      string
	}{
		{"7zip-AES256.zip", []string{fixturePassword}, 1, fixtureFound},
		{"7zip-AES256.zip", []string{"fout", fixturePassword}, 2, fixtureFound},
		{"7zip-AES256.zip", []string{"fout", "", fixturePassword}, 3, fixtureFound},
		{"7zip-AES256.zip", []string{"fout", "Geheim-2026", "geheim-2025", fixturePassword}, 3, string(WrongPassword)},
		{"7zip-AES256.zip", []string{" " + fixturePassword + "\r\n"}, 1, fixtureFound + "\n! The password opened the archive without the spaces around it."},
		{"7zip-ZipCrypto.zip", []string{"fout", "Geheim-2026", "geheim-2025", fixturePassword}, 3, string(WrongPassword)},
		{"7zip-ZipCrypto.zip", []string{"fout", fixturePassword}, 2, fixtureFound},
		{"nested.zip", []string{"fout", fixturePassword}, 2, fixtureFound}, // not asked again for the inner one
		{"plain.zip", []string{"never"}, 0, fixtureFound},
	} {
		asked := 0
		b := fixture(t, c.file)
		f, err := Read(bytes.NewReader(b), int64(len(b)), typed(&asked, c.passwords...))
		if got := show(f, err); got != c.want || asked != c.asked {
			t.Errorf("%s %q: asked %d times, want %d; got %s (%v)", c.file, c.passwords, asked, c.asked, got, err)
		}
		wantNothingSecret(t, f, err, "geheim-202", "Geheim-2026", "fout")
	}
}

func TestPasswordFunctionDecides(t *testing.T) {
	b := fixture(t, "7zip-AES256.zip")
	given := secret.FromString("fout")
	enough := errors.New("enough")
	_, err := Read(bytes.NewReader(b), int64(len(b)), func(archive string, try int) (secret.Secret, error) {
		if archive != "" {
			t.Errorf("archive %q", archive)
		}
		if try == 2 {
			return secret.Secret{}, enough
		}
		return given, nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
	if err := given.Use(func([]byte) error { return nil }); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("the password was not wiped: %v", err)
	}
	if _, err := Read(bytes.NewReader(b), int64(len(b)), nil); show(Found{}, err) != string(WrongPassword) {
		t.Errorf("without a password: %v", err)
	}
}

// TestWrongZipCryptoPasswordThatPasses finds wrong passwords whose check byte
// fits, one in 256: the CRC must refuse them, and the next one is asked for.
func TestWrongZipCryptoPasswordThatPasses(t *testing.T) {
	for _, name := range []string{"7zip-ZipCrypto.zip", "7zip-ZipCrypto-stored.zip", "infozip.zip"} {
		b := fixture(t, name)
		entries, err := list(b, "")
		if err != nil {
			t.Fatal(err)
		}
		passed := 0
		for i := 0; i < 5000 && passed < 3; i++ {
			wrong := "p" + strings.Repeat("x", i%71) + string(rune('a'+i%26)) + strings.Repeat("y", i/71)
			if _, err := openZipCrypto(entries[0].raw, []byte(wrong), entries[0].check); err != nil {
				continue
			}
			passed++
			asked := 0
			f, err := Read(bytes.NewReader(b), int64(len(b)), typed(&asked, wrong, fixturePassword))
			if show(f, err) != fixtureFound || asked != 2 {
				t.Errorf("%s: asked %d, got %s (%v)", name, asked, show(f, err), err)
			}
			f, err = readBytes(b, wrong, wrong, wrong)
			if show(f, err) != string(Damaged) || !strings.Contains(err.Error(), "wrong password") {
				t.Errorf("%s: got %s (%v)", name, show(f, err), err)
			}
		}
		if passed == 0 {
			t.Errorf("%s: no password passed the check byte", name)
		}
	}
}

var smallArchives = []string{"7zip-AES128-stored.zip", "7zip-AES192-stored.zip", "7zip-AES256-stored.zip", "7zip-AES256.zip", "bsdtar-aes128-tiny.zip",
	"bsdtar-aes256.zip", "7zip-ZipCrypto-stored.zip", "bsdtar-traditional.zip", "infozip.zip", "infozip-pipe.zip", "plain.zip"}

func TestTruncatedAtEveryByte(t *testing.T) {
	for _, name := range smallArchives {
		b := fixture(t, name)
		for n := range len(b) {
			f, err := readBytes(b[:n], fixturePassword, fixturePassword, fixturePassword)
			var e *Error
			if !errors.As(err, &e) || e.Kind != Damaged && n >= 4 {
				t.Errorf("%s cut to %d bytes: %s (%v)", name, n, show(f, err), err)
			}
			wantNothingSecret(t, f, err)
		}
	}
}

// TestFlippedBits never gives another value than the true one.
func TestFlippedBits(t *testing.T) {
	for _, name := range smallArchives {
		b := fixture(t, name)
		refused := 0
		for i := range 8 * len(b) {
			if name != "7zip-ZipCrypto-stored.zip" && i%8 != i/8%8 {
				continue // all bits of one, one of each byte of the others
			}
			b[i/8] ^= 1 << (i % 8)
			f, err := readBytes(b, fixturePassword, fixturePassword, fixturePassword)
			b[i/8] ^= 1 << (i % 8)
			var e *Error
			switch {
			case errors.As(err, &e):
				refused++
			case err != nil || show(f, nil) != fixtureFound:
				t.Errorf("%s, bit %d: %s (%v)", name, i, show(f, err), err)
			}
			wantNothingSecret(t, f, err)
			f.Wipe()
		}
		if refused < len(b)/2 {
			t.Errorf("%s: only %d flips refused", name, refused)
		}
	}
}

func TestDamagedDataIsNamed(t *testing.T) {
	for name, want := range map[string]string{"7zip-AES256.zip": "", "bsdtar-aes256.zip": "", "plain.zip": "", "infozip.zip": "seldom, a wrong password"} {
		b := fixture(t, name)
		entries, err := list(b, "")
		if err != nil {
			t.Fatal(err)
		}
		entries[0].raw[len(entries[0].raw)/2] ^= 1
		asked := 0
		_, err = Read(bytes.NewReader(b), int64(len(b)), typed(&asked, fixturePassword))
		var e *Error
		if !errors.As(err, &e) || e.Kind != Damaged || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ".txt is damaged") {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(name, "AES") && asked != 1 {
			t.Errorf("%s: asked %d times although the password fits", name, asked)
		}
	}
}

// raw writes an archive with one entry as its header says.
func raw(t testing.TB, h zip.FileHeader, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateRaw(&h)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestContradictions(t *testing.T) {
	text := []byte("Client ID: " + fixtureID)
	sum := crc32.ChecksumIEEE(text)
	n := uint64(len(text))
	ae := func(version, strength, method byte) []byte {
		return []byte{1, 0x99, 7, 0, version, 0, 'A', 'E', strength, method, 0}
	}
	for name, c := range map[string]struct {
		h    zip.FileHeader
		want Kind
	}{
		"strong encryption":        {zip.FileHeader{Flags: 1 | flagStrong, Method: zip.Store}, Unsupported},
		"masked directory":         {zip.FileHeader{Flags: 1 | flagMasked, Method: zip.Store}, Unsupported},
		"deflate64":                {zip.FileHeader{Method: 9}, Unsupported},
		"AES without the flag":     {zip.FileHeader{Method: methodAES, Extra: ae(2, 3, 0)}, Damaged},
		"AES without its field":    {zip.FileHeader{Flags: 1, Method: methodAES}, Unsupported},
		"AES of version 3":         {zip.FileHeader{Flags: 1, Method: methodAES, Extra: ae(3, 3, 0)}, Unsupported},
		"AES of strength 0":        {zip.FileHeader{Flags: 1, Method: methodAES, Extra: ae(2, 0, 0)}, Unsupported},
		"AES of strength 4":        {zip.FileHeader{Flags: 1, Method: methodAES, Extra: ae(2, 4, 0)}, Unsupported},
		"AES of another vendor":    {zip.FileHeader{Flags: 1, Method: methodAES, Extra: []byte{1, 0x99, 7, 0, 2, 0, 'X', 'Y', 3, 0, 0}}, Unsupported},
		"AES field cut":            {zip.FileHeader{Flags: 1, Method: methodAES, Extra: []byte{1, 0x99, 3, 0, 2, 0, 'A'}}, Unsupported},
		"AES, too short":           {zip.FileHeader{Flags: 1, Method: methodAES, Extra: ae(2, 3, 0), CompressedSize64: 27, UncompressedSize64: 1}, Damaged},
		"ZipCrypto, too short":     {zip.FileHeader{Flags: 1, Method: zip.Store, CompressedSize64: 11, UncompressedSize64: 1}, Damaged},
		"wrong CRC":                {zip.FileHeader{Method: zip.Store, CRC32: sum ^ 1}, Damaged},
		"stored, longer than said": {zip.FileHeader{Method: zip.Store, CRC32: sum, UncompressedSize64: n - 1}, Damaged},
		"no deflate stream":        {zip.FileHeader{Method: zip.Deflate, CRC32: sum}, Damaged},
		"larger than any":          {zip.FileHeader{Method: zip.Deflate, CompressedSize64: maxEntry - 9, UncompressedSize64: maxEntry + 1}, TooLarge},
		"packed larger":            {zip.FileHeader{Method: zip.Store, CompressedSize64: maxEntry + 8<<10, UncompressedSize64: maxEntry}, TooLarge},
		"a program":                {zip.FileHeader{Name: "uitpakken.exe", Method: zip.Store, Comment: "MZ"}, Suspicious},
	} {
		data := text
		if c.h.Comment != "" {
			data = append([]byte(c.h.Comment), text...)
			c.h.CRC32 = crc32.ChecksumIEEE(data)
		}
		if c.h.Name == "" {
			c.h.Name = "credentials.txt"
		}
		if c.h.CompressedSize64 == 0 {
			c.h.CompressedSize64 = uint64(len(data))
		}
		if c.h.UncompressedSize64 == 0 {
			c.h.UncompressedSize64 = uint64(len(data))
		}
		f, err := readBytes(raw(t, c.h, append(data, make([]byte, int(c.h.CompressedSize64)-min(int(c.h.CompressedSize64), len(data)))...)), "a", "b", "c")
		if got := show(f, err); got != string(c.want) {
			t.Errorf("%s: got %s (%v), want %s", name, got, err, c.want)
		}
		wantNothingSecret(t, f, err)
	}
}

// TestCRCBesideTheCode: AE-1 has a CRC, and AE-2 none (WinZip II.3).
func TestCRCBesideTheCode(t *testing.T) {
	for name, want := range map[string]string{"bsdtar-aes256.zip": string(Damaged), "7zip-AES256.zip": fixtureFound} {
		b := fixture(t, name)
		b[bytes.LastIndex(b, []byte("PK\x01\x02"))+16] ^= 1 // APPNOTE 4.3.12
		f, err := readBytes(b, fixturePassword)
		if got := show(f, err); got != want {
			t.Errorf("%s: got %s (%v)", name, got, err)
		}
	}
}

// TestStreamLengths: the packed data must end where the unpacked does.
func TestStreamLengths(t *testing.T) {
	b := fixture(t, "plain.zip")
	entries, err := list(b, "")
	if err != nil {
		t.Fatal(err)
	}
	e := entries[0]
	for _, size := range []int{e.size - 1, e.size + 1} {
		if err := inflate(make([]byte, size), e.raw); !errors.Is(err, errDamaged) {
			t.Errorf("size %d instead of %d: %v", size, e.size, err)
		}
	}
	if err := inflate(make([]byte, e.size), e.raw[:len(e.raw)-1]); !errors.Is(err, errDamaged) {
		t.Errorf("stream without its end: %v", err)
	}
}

// TestSpanningMark: a mark before the first record is no part of any entry.
func TestSpanningMark(t *testing.T) {
	for _, mark := range []string{"PK\x07\x08", "PK00"} {
		if f, err := readBytes(append([]byte(mark), fixture(t, "7zip-AES256.zip")...), fixturePassword); show(f, err) != fixtureFound {
			t.Errorf("%q: %s (%v)", mark, show(f, err), err)
		}
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("é", 65)
	for name, want := range map[string]string{
		"map/sub/brief.txt":           "brief.txt",
		`map\brief.txt`:               "brief.txt",
		"a\x1b[31mb\nc\u202ed.txt":    "a?[31mb?c?d.txt",
		"clie\x89nt.txt":              "clieënt.txt", // code page 437
		"cliënt.txt":                  "cliënt.txt",
		long:                          strings.Repeat("é", 63) + "…",
		strings.TrimSuffix(long, "é"): strings.Repeat("é", 64),
	} {
		if got := shownName(&zip.File{FileHeader: zip.FileHeader{Name: name}}); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"..", "../x", "a/../b", `a\..\..\x`, "/x", `\x`, "c:x", `C:\x`, "", "a\x00b"} {
		if !leadsOutside(name) {
			t.Errorf("%q stays inside", name)
		}
	}
	for _, name := range []string{"a", "a/b", "..a", "a..", "a/...", "a b"} {
		if leadsOutside(name) {
			t.Errorf("%q leads outside", name)
		}
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

func TestReadErrors(t *testing.T) {
	if _, err := Read(failing{}, 10, nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	for name, c := range map[string]struct {
		size int64
		want Kind
	}{"empty": {0, NotUnderstood}, "shorter than said": {100, Damaged}, "too large": {maxArchive + 1, TooLarge}} {
		if _, err := Read(strings.NewReader("Client ID: abc"), c.size, nil); show(Found{}, err) != string(c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f, err := readBytes(bytes.Repeat([]byte("x"), maxEntry+1)); show(f, err) != string(TooLarge) {
		t.Errorf("a large text: %v", err)
	}
}
