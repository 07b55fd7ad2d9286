package intake

import (
	"crypto/aes"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the format prescribes it
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Rules of this file:
//   - "WinZip" is "AES Encryption Information: Encryption Specification AE-1
//     and AE-2", version 1.04; "APPNOTE" is PKWARE's .ZIP File Format
//     Specification, version 6.3.10;
//   - functions give a buffer of their own, which the caller wipes, and wipe
//     every key themselves.

var (
	errPassword = errors.New("the password does not fit")
	errDamaged  = errors.New("the entry is damaged")
	errFIPS     = errors.New("SHA-1 is not allowed")
)

const (
	verifierLen = 2  // WinZip III.1
	authCodeLen = 10 // WinZip III.1: HMAC-SHA1-80
	headerLen   = 12 // APPNOTE 6.1.3
	rounds      = 1000
)

// openAES decrypts an AES entry (WinZip III.1): salt, password verification
// value, encrypted data, authentication code. The code is checked before a
// byte is decrypted. strength is 1, 2 or 3 (WinZip II.4).
func openAES(raw, password []byte, strength byte) ([]byte, error) {
	if fips140.Enforced() {
		return nil, errFIPS
	}
	keyLen := 8 + 8*int(strength) // 16, 24, 32
	saltLen := keyLen / 2         // WinZip III.2
	if len(raw) < saltLen+verifierLen+authCodeLen {
		return nil, errDamaged
	}
	salt, rest := raw[:saltLen], raw[saltLen:]
	verifier, rest := rest[:verifierLen], rest[verifierLen:]
	sealed, code := rest[:len(rest)-authCodeLen], rest[len(rest)-authCodeLen:]

	// WinZip V.3: encryption key, authentication key, verification value.
	keys := pbkdf2(password, salt, 2*keyLen+verifierLen)
	defer clear(keys)
	if subtle.ConstantTimeCompare(keys[2*keyLen:], verifier) != 1 { // WinZip III.3
		return nil, errPassword
	}
	mac := hmac.New(sha1.New, keys[keyLen:2*keyLen])
	mac.Write(sealed)
	if !hmac.Equal(mac.Sum(nil)[:authCodeLen], code) { // WinZip III.5
		return nil, errDamaged
	}
	block, err := aes.NewCipher(keys[:keyLen])
	if err != nil {
		return nil, err
	}
	// WinZip III.4: CTR mode. The counter starts at 1 and is little-endian,
	// which crypto/cipher's is not.
	var counter, stream [aes.BlockSize]byte
	defer clear(stream[:])
	out := make([]byte, len(sealed))
	for n := 0; n < len(sealed); n += aes.BlockSize {
		binary.LittleEndian.PutUint64(counter[:], uint64(n/aes.BlockSize+1))
		block.Encrypt(stream[:], counter[:])
		subtle.XORBytes(out[n:], sealed[n:], stream[:])
	}
	return out, nil
}

// pbkdf2 is PBKDF2 (RFC 8018 §5.2) with HMAC-SHA1 and 1000 rounds, as WinZip
// V.3 has it. The standard library's copies the password to where it cannot
// be wiped.
func pbkdf2(password, salt []byte, n int) []byte {
	prf := hmac.New(sha1.New, password)
	out := make([]byte, 0, n+sha1.Size)
	var u [sha1.Size]byte
	defer clear(u[:])
	for i := uint32(1); len(out) < n; i++ {
		prf.Reset()
		prf.Write(salt)
		prf.Write(binary.BigEndian.AppendUint32(nil, i))
		prf.Sum(u[:0])
		out = append(out, u[:]...)
		t := out[len(out)-sha1.Size:]
		for range rounds - 1 {
			prf.Reset()
			prf.Write(u[:])
			prf.Sum(u[:0])
			subtle.XORBytes(t, t, u[:])
		}
	}
	clear(out[n:])
	return out[:n]
}

// openZipCrypto decrypts an entry with traditional encryption (APPNOTE 6.1).
// check is what the last byte of the decrypted header must be. One wrong
// password in 256 passes it: only the CRC of the unpacked entry decides.
func openZipCrypto(raw, password []byte, check byte) ([]byte, error) {
	if len(raw) < headerLen {
		return nil, errDamaged
	}
	k := zipKeys{0x12345678, 0x23456789, 0x34567890} // APPNOTE 6.1.5
	defer clear(k[:])
	for _, c := range password {
		k.update(c)
	}
	var last byte // APPNOTE 6.1.6
	for _, c := range raw[:headerLen] {
		last = c ^ k.stream()
		k.update(last)
	}
	if subtle.ConstantTimeByteEq(last, check) != 1 {
		return nil, errPassword
	}
	out := make([]byte, len(raw)-headerLen) // APPNOTE 6.1.7
	for i, c := range raw[headerLen:] {
		out[i] = c ^ k.stream()
		k.update(out[i])
	}
	return out, nil
}

// zipKeys are the three keys of APPNOTE 6.1.5.
type zipKeys [3]uint32

func (k *zipKeys) update(c byte) {
	k[0] = crcByte(k[0], c)
	k[1] = (k[1]+k[0]&0xff)*134775813 + 1
	k[2] = crcByte(k[2], byte(k[1]>>24))
}

// stream is decrypt_byte() of APPNOTE 6.1.6.
func (k *zipKeys) stream() byte {
	t := uint16(k[2]) | 2
	return byte(uint16(uint32(t) * uint32(t^1) >> 8))
}

// crcByte is the bare CRC-32 step, without the inversions of the finished one.
func crcByte(crc uint32, c byte) uint32 {
	return crc32.IEEETable[byte(crc)^c] ^ crc>>8
}
