. /work/main/tests/lib.sh
make_volume
mount_volume -o cache=$1
cd $M
python3 - <<'END'
import os,time
f = os.open("sparse", os.O_RDWR | os.O_CREAT, 0o640)
for at in (0, 1 << 20, (1 << 30) + 5, 5 << 30):
    os.pwrite(f, b"data at %d\n" % at, at)
os.ftruncate(f, (5 << 30) + (1 << 20))
t=time.time()
at=0
while True:
    try: at=os.lseek(f,at,os.SEEK_DATA)
    except OSError: break
    e=os.lseek(f,at,os.SEEK_HOLE)
    print(at,e); at=e
print("seek", time.time()-t)
END
time tar -cSf ../x.tar sparse
mkdir again
time tar -C again -xSpf ../x.tar
time tar -C again -df ../x.tar
time dd if=sparse of=/dev/null bs=1M
cd /
unmount_volume
