# 0: removal; 1: upgrade.
if [ "$1" = 0 ]; then
    systemctl disable --now telecomx-gateway.service >/dev/null 2>&1 || :
fi
