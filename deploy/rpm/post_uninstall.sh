# 0: removal; 1: upgrade.
systemctl daemon-reload >/dev/null 2>&1 || :
if [ "$1" = 1 ]; then
    systemctl try-restart telecomx-gateway.service >/dev/null 2>&1 || :
fi
if [ "$1" = 0 ]; then
    # The package owns files, not folders.
    find /usr/share/telecomx-gateway /usr/share/doc/telecomx-gateway -depth -type d -empty -delete \
        2>/dev/null || :
fi
